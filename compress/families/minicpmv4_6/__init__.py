"""MiniCPM-V 4.6 and 4.7: SigLIP with a merger inside, a second merger as connector, Qwen3.5 as language model."""
