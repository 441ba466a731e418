"""Bundles of graphs, model families, recipes and plans, passes and weight algorithms."""
