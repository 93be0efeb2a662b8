"""Comparisons of methods x seeds on one recipe: the plan, the runs and the report."""
