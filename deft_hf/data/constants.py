"""Numbers that all of the data agrees on; imports nothing."""

IGNORE_INDEX = 255
"""The train id of pixels that neither train nor score."""
