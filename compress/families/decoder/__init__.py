"""The decoder that every language model here shares: configuration, component graphs, host side."""
