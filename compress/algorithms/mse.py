"""Round to nearest on the grid that errs least: large weights are clipped where that pays."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from pocketport.compress.algorithms.base import Grid, Matrix, RoundedWeight, WeightProblem, grid_for, grouped, round_to

STEPS = 40
WIDE_STEPS = 10  # where rounding errs so little that hardly any weight gains by clipping
WIDE_LEVELS = 255
LEAST = 0.5
CHUNK = 1 << 16  # weights searched at once: what a core's cache holds


def mse(problem: WeightProblem, *, steps: float = 0, least: float = LEAST) -> RoundedWeight:
    """Least Σ importance · (w − ŵ)² a group over `steps` clipping ratios (0: 40, of 8 bits 10) from 1 down to `least`.

    The importance of a column is the mean square of its input, so that the sum is the layer's expected squared error
    but for correlations between inputs; without statistics all columns weigh the same.
    """
    return round_to(searched_grid(problem, steps=int(steps), least=least), problem)


def searched_grid(problem: WeightProblem, *, steps: int = 0, least: float = LEAST) -> Grid:
    """The grid of `mse`."""
    steps = steps or (WIDE_STEPS if problem.format.high - problem.format.low >= WIDE_LEVELS else STEPS)
    groups = grouped(problem)
    importance = _importance(problem)
    low = np.minimum(groups.min(axis=-1), 0.0).astype(np.float64)
    high = np.maximum(groups.max(axis=-1), 0.0).astype(np.float64)
    ratio = np.empty(low.shape)
    rows = max(1, CHUNK // (groups.shape[1] * groups.shape[2]))
    for start in range(0, len(groups), rows):
        part = slice(start, start + rows)
        ratio[part] = _best_ratio(
            groups[part], low[part], high[part], importance, problem, np.linspace(1.0, least, steps)
        )
    return grid_for(low * ratio, high * ratio, problem)


def _best_ratio(
    groups: Matrix,
    low: NDArray[np.float64],
    high: NDArray[np.float64],
    importance: Matrix,
    problem: WeightProblem,
    candidates: NDArray[np.float64],
) -> NDArray[np.float64]:
    """The ratio with the least error for each of the groups [n, G, group]."""
    form = replace(problem.format, scale_levels=0)
    free = WeightProblem(problem.weight, form)
    best, ratio = np.full(low.shape, np.inf), np.ones(low.shape)
    for candidate in candidates:
        grid = grid_for(low * candidate, high * candidate, free)
        scale, zero = grid.scale[..., None], grid.zero_point[..., None].astype(np.float32)
        rounded = np.rint(groups / scale)
        np.clip(rounded, form.low - zero, form.high - zero, out=rounded)
        rounded *= scale
        rounded -= groups
        error = np.einsum("ngk,ngk,gk->ng", rounded, rounded, importance)
        better = error < best
        best, ratio = np.where(better, error, best), np.where(better, candidate, ratio)
    return ratio


def _importance(problem: WeightProblem) -> Matrix:
    """Of each column, as [G, group] (of every weight where one scale serves all)."""
    rows, columns = problem.weight.shape
    group = problem.format.group
    if problem.importance is None:
        weights = np.ones(columns, np.float32)
    else:
        mean = float(problem.importance.mean()) or 1.0
        # Inputs that were never seen still must not be thrown away.
        weights = np.maximum(problem.importance / mean, 1e-4).astype(np.float32)
    return weights.reshape(-1, group) if group else np.tile(weights, rows)[None]
