"""Samples and their sources, activation capture, observers and encodings."""
