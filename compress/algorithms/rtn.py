"""Round to nearest on the grid of each group's extremes."""

import numpy as np

from pocketport.compress.algorithms.base import RoundedWeight, WeightProblem, grid_for, grouped, round_to


def rtn(problem: WeightProblem) -> RoundedWeight:
    """Nothing is clipped, every weight goes to its nearest integer."""
    groups = grouped(problem).astype(np.float64)
    low, high = np.minimum(groups.min(axis=-1), 0.0), np.maximum(groups.max(axis=-1), 0.0)
    return round_to(grid_for(low, high, problem), problem)
