"""Weights rounded on samples: layer after layer, or block after block, behind what is rounded before them."""
