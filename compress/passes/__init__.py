"""Graph passes: each one keeps what the graph computes."""
