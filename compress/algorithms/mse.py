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
    runs_of_rows,
)

STEPS = 40
WIDE_STEPS = 10  # where rounding errs so little that hardly any weight gains by clipping
WIDE_LEVELS = 255
LEAST = 0.5
MARGIN = 1.001  # errors are summed up in float32


def mse(problem: WeightProblem, *, steps: float = 0, least: float = LEAST) -> RoundedWeight:
    """Least Σ importance · (w − ŵ)² a group over `steps` clipping ratios (0: 40, of 8 bits 10) from 1 down to `least`.

    The importance of a column is the mean square of its input, so that the sum is the layer's expected squared error
    but for correlations between inputs; without statistics all columns weigh the same.
    """
    return round_to(searched_grid(problem, steps=int(steps), least=least), problem)


def searched_grid(problem: WeightProblem, *, steps: int = 0, least: float = LEAST) -> Grid:
    """The grid of `mse`."""
    steps = steps or (WIDE_STEPS if problem.format.high - problem.format.low >= WIDE_LEVELS else STEPS)
    groups, candidates = grouped(problem), np.linspace(1.0, least, steps)
    importance = _importance(problem)
    found = [_best_range(groups[part], importance, problem.format, candidates) for part in runs_of_rows(groups)]
    low, high = (np.concatenate(ends) for ends in zip(*found, strict=True))
    return grid_for(low, high, problem)


def _best_range(
    groups: Matrix, importance: Matrix, form: WeightFormat, candidates: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The clipped range with the least error for each of the groups [n, G, group]: its ends, [n, G] each.

    Candidates fall. What a group's farthest weight loses by clipping only grows as they do: a group that this alone
    makes worse than its best so far is done with, which in 8 bits nearly all are after the first.
    """
    lowest, highest = groups.argmin(axis=-1), groups.argmax(axis=-1)
    least, most = (np.take_along_axis(groups, at[..., None], axis=-1)[..., 0] for at in (lowest, highest))
    farthest, outlier = (np.where(-least > most, *pair) for pair in ((lowest, highest), (least, most)))
    low, high = np.minimum(least, 0.0).astype(np.float64), np.maximum(most, 0.0).astype(np.float64)
    free = replace(form, scale_levels=0)
    best, ratio = np.full(low.shape, np.inf), np.ones(low.shape)
    weight = importance[np.arange(groups.shape[1]), farthest]
    for candidate in candidates:
        grid = grid_for(low * candidate, high * candidate, WeightProblem(groups, free))
        ends = ((limit - grid.zero_point) * grid.scale for limit in (form.low, form.high))
        clipping = weight * np.square(outlier - np.clip(outlier, *ends))
        open_rows = np.flatnonzero((clipping < best * MARGIN).any(axis=1))
        if not open_rows.size:
            break
        rows = slice(None) if open_rows.size == len(groups) else open_rows
        error = _errors(groups[rows], Grid(grid.scale[rows], grid.zero_point[rows]), importance, form)
        better = error < best[rows]
        best[rows], ratio[rows] = np.where(better, error, best[rows]), np.where(better, candidate, ratio[rows])
    return low * ratio, high * ratio


def _errors(groups: Matrix, grid: Grid, importance: Matrix, form: WeightFormat) -> Matrix:
    """Σ importance · (w − ŵ)² of each group, [n, G]."""
    scale, zero = grid.scale[..., None], grid.zero_point[..., None].astype(np.float32)
    rounded = groups / scale
    np.rint(rounded, out=rounded)
    np.maximum(rounded, form.low - zero, out=rounded)  # np.clip is four times as slow where bounds are arrays
    np.minimum(rounded, form.high - zero, out=rounded)
    rounded *= scale
    rounded -= groups
    error: Matrix = np.vecdot(np.square(rounded, out=rounded), importance)
    return error


def _importance(problem: WeightProblem) -> Matrix:
    """Of each column, as [G, group] (of every weight where one scale serves all)."""
    rows, columns = problem.weight.shape
    group = problem.format.group
    weights = column_weights(problem.importance, columns)
    return weights.reshape(-1, group) if group else np.tile(weights, rows)[None]
