"""Idefics3 and SmolVLM: images cut into tiles, a SigLIP tower, a pixel-shuffle connector, a Llama."""
