"""Quantizing weights out of core: one transformer block at a time, its activations in memory or on disk."""
