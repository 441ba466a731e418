"""Quantized weights fitted to what the float model says, end to end."""
