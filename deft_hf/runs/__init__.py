"""A run from its typed parts: its steps, facts and folder."""
