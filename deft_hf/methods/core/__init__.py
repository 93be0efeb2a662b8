"""What every method is made of: stages and parts; no method's name."""
