"""Model families: how a published checkpoint becomes component graphs, and how the components chain."""
