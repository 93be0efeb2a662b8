"""Methods and what goes with them, each in one file."""
