"""Round to nearest on the grid that errs least: large weights are clipped where that pays."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from pocketport.compress.algorithms.base import (
    Grid,
    Matrix,
    RoundedWeight,
    WeightFormat,
    WeightProblem,
    column_weights,
    grid_for,
    grouped,
    round_to,
)

STEPS = 40
WIDE_STEPS = 10  # where rounding errs so little that hardly any weight gains by clipping
WIDE_LEVELS = 255
LEAST = 0.5
MARGIN = 1.001  # errors are summed up in float32
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
    """The ratio with the least error for each of the groups [n, G, group].

    Candidates fall. What a group's farthest weight loses by clipping only grows as they do: a group that this alone
    makes worse than its best so far is done with, which in 8 bits nearly all are after the first.
    """
    form = replace(problem.format, scale_levels=0)
    free = WeightProblem(problem.weight, form)
    best, ratio = np.full(low.shape, np.inf), np.ones(low.shape)
    farthest = np.abs(groups).argmax(axis=-1)
    outlier = np.take_along_axis(groups, farthest[..., None], axis=-1)[..., 0]
    weight = importance[np.arange(groups.shape[1]), farthest]
    for candidate in candidates:
        grid = grid_for(low * candidate, high * candidate, free)
        least, most = ((limit - grid.zero_point) * grid.scale for limit in (form.low, form.high))
        clipping = weight * np.square(outlier - np.clip(outlier, least, most))
        open_rows = np.flatnonzero((clipping < best * MARGIN).any(axis=1))
        if not open_rows.size:
            break
        rows = slice(None) if open_rows.size == len(groups) else open_rows
        error = _errors(groups[rows], Grid(grid.scale[rows], grid.zero_point[rows]), importance, problem.format)
        better = error < best[rows]
        best[rows], ratio[rows] = np.where(better, error, best[rows]), np.where(better, candidate, ratio[rows])
    return ratio


def _errors(groups: Matrix, grid: Grid, importance: Matrix, form: WeightFormat) -> Matrix:
    """Σ importance · (w − ŵ)² of each group, [n, G]."""
    scale, zero = grid.scale[..., None], grid.zero_point[..., None].astype(np.float32)
    rounded = groups / scale
    np.rint(rounded, out=rounded)
    np.clip(rounded, form.low - zero, form.high - zero, out=rounded)
    rounded *= scale
    rounded -= groups
    error: Matrix = np.einsum("ngk,ngk,gk->ng", rounded, rounded, importance)
    return error


def _importance(problem: WeightProblem) -> Matrix:
    """Of each column, as [G, group] (of every weight where one scale serves all)."""
    rows, columns = problem.weight.shape
    group = problem.format.group
    weights = column_weights(problem.importance, columns)
    return weights.reshape(-1, group) if group else np.tile(weights, rows)[None]
