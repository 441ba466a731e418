"""Checkpoints of published shapes with random weights: what full-size tests and benchmarks use."""
