"""Errors, folders that are whole or not there, the console."""
