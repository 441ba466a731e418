"""Seeing why: where a run's loss comes from, and what would take it back."""
