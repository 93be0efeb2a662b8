"""The exported model: a plain Hub folder, proof that it loads without deft_hf, its card, and the way to the Hub."""
