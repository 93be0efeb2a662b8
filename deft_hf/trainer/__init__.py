"""`DeFTTrainer` and its parts."""
