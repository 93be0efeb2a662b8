"""Damaged and unusual inputs, one module a kind. Each has its right result, or a part of its one message.

A module has `RIGHT`, by name (input, right result), and `REFUSED`, by name (input, part of the message); its `outcome`
does with an input what a user does.
"""
