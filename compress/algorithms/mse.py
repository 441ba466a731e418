"""Round to nearest on the grid that errs least: large weights are clipped where that pays."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from pocketport.compress.algorithms.base import Grid, RoundedWeight, WeightProblem, grid_for, grouped, round_to

STEPS = 40
LEAST = 0.5


def mse(problem: WeightProblem, *, steps: float = STEPS, least: float = LEAST) -> RoundedWeight:
    """Least Σ importance · (w − ŵ)² a group over `steps` clipping ratios from 1 down to `least`.

    The importance of a column is the mean square of its input, so that the sum is the layer's expected squared error
    but for correlations between inputs; without statistics all columns weigh the same.
    """
    return round_to(searched_grid(problem, steps=int(steps), least=least), problem)


def searched_grid(problem: WeightProblem, *, steps: int = STEPS, least: float = LEAST) -> Grid:
    """The grid of `mse`."""
    form = problem.format
    groups = grouped(problem)
    weights = _importance(problem, groups.shape)
    low, high = (
        np.minimum(groups.min(axis=-1), 0.0).astype(np.float64),
        np.maximum(groups.max(axis=-1), 0.0).astype(np.float64),
    )
    best, ratio = np.full(low.shape, np.inf), np.ones(low.shape)
    free = WeightProblem(problem.weight, replace(form, scale_levels=0))
    for candidate in np.linspace(1.0, least, steps):
        grid = grid_for(low * candidate, high * candidate, free)
        scale, zero = grid.scale[..., None], grid.zero_point[..., None]
        integers = np.clip(np.rint(groups / scale) + zero, form.low, form.high)
        error = np.einsum("ngk,ngk->ng", np.square((integers - zero) * scale - groups), weights)
        better = error < best
        best, ratio = np.where(better, error, best), np.where(better, candidate, ratio)
    return grid_for(low * ratio, high * ratio, problem)


def _importance(problem: WeightProblem, shape: tuple[int, ...]) -> NDArray[np.float32]:
    if problem.importance is None:
        return np.ones(shape, np.float32)
    mean = float(problem.importance.mean()) or 1.0
    # Inputs that were never seen still must not be thrown away.
    columns = np.maximum(problem.importance / mean, 1e-4).astype(np.float32)
    rows = problem.weight.shape[0]
    return np.broadcast_to(columns, (rows, columns.size)).reshape(shape)
