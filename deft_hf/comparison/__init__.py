"""Methods x seeds on one recipe: what is run, how it is run, and what is said about it."""
