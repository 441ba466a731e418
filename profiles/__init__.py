"""Devices as data, cost and memory models, budgets and the gate."""
