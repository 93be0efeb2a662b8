"""Errors, folders that are complete or absent, the console."""
