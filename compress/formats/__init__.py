"""Checkpoint formats that quantized weights are written in, for engines that run on the phone or the host."""
