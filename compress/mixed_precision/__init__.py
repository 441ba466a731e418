"""A scheme for each layer: sensitivities from one pass over the data, and the exact best choice under a budget."""
