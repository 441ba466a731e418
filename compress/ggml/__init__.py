"""ggml: its block formats and its files."""
