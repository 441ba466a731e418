"""Vision towers and image-text encoders: SigLIP, SigLIP 2 and CLIP."""
