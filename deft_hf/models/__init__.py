"""What deft_hf knows of models: families, objectives, backbones, and one way to open each."""
