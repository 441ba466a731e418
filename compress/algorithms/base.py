"""What weight algorithms work on: a matrix with the channels first, a grid, and what calibration knows."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Matrix: TypeAlias = NDArray[np.float32]

CHUNK = 1 << 18  # weights worked on at once: what a core's cache holds


@dataclass(frozen=True)
class WeightFormat:
    """How a matrix [N, K] is written.

    Attributes:
        low: least integer.
        high: greatest integer.
        symmetric: zero point in the middle of the integers, else one a group.
        group: columns that share a scale: K per channel, a divisor of K per block, 0 where one scale serves all.
        scale_levels: where not 0, every scale is k / scale_levels of its row's greatest one, k = 1 … scale_levels.
    """

    low: int
    high: int
    symmetric: bool
    group: int
    scale_levels: int = 0


@dataclass(frozen=True)
class WeightProblem:
    """A weight to be rounded.

    Attributes:
        weight: [N, K], output channels first.
        format: see WeightFormat.
        importance: [K] ≥ 0, mean square of each input (diagonal of the Hessian), or None where not known.
        hessian: [K, K], Σ xᵀx, or None.
        least_scale: [N], scales may not be smaller (an int32 bias must fit s_x · s_w), or None.
    """

    weight: Matrix
    format: WeightFormat
    importance: NDArray[np.float64] | None = None
    hessian: NDArray[np.float32] | None = None
    least_scale: NDArray[np.float64] | None = None


@dataclass(frozen=True)
class Grid:
    """Scales and zero points, [N, G] for G groups a row ([1, 1] for one scale)."""

    scale: Matrix
    zero_point: NDArray[np.int32]


@dataclass(frozen=True)
class RoundedWeight:
    """Integers [N, K] on their grid."""

    integers: NDArray[np.int32]
    grid: Grid


WeightAlgorithm: TypeAlias = Callable[..., RoundedWeight]


def grouped(problem: WeightProblem) -> Matrix:
    """The weight as [N, G, group] (as [1, 1, N·K] where one scale serves all)."""
    n, k = problem.weight.shape
    group = problem.format.group
    return problem.weight.reshape(n, k // group, group) if group else problem.weight.reshape(1, 1, n * k)


def column_weights(importance: NDArray[np.float64] | None, columns: int) -> Matrix:
    """How much a column's error counts, [K]: its importance, of mean 1; all alike where that is not known."""
    if importance is None:
        return np.ones(columns, np.float32)
    mean = float(importance.mean()) or 1.0
    # Inputs that were never seen still must not be thrown away.
    return np.maximum(importance / mean, 1e-4).astype(np.float32)


def grid_for(low: NDArray[np.float64], high: NDArray[np.float64], problem: WeightProblem) -> Grid:
    """The grid that covers [low, high] a group, both [N, G] and containing 0, within the format's constraints."""
    form = problem.format
    if form.symmetric:
        middle = (form.low + form.high + 1) // 2
        scale = np.maximum(-low, high) / (form.high - middle)
        zero_point = np.full(scale.shape, middle, np.int32)
    else:
        scale = (high - low) / (form.high - form.low)
        zero_point = np.zeros(scale.shape, np.int32)
    if problem.least_scale is not None:
        least = problem.least_scale[:, None] if form.group else problem.least_scale.max().reshape(1, 1)
        scale = np.maximum(scale, least)
    scale = np.where(scale > np.finfo(np.float32).tiny, scale, 1.0)
    if form.scale_levels:
        unit = scale.max(axis=1, keepdims=True).astype(np.float32) / np.float32(form.scale_levels)
        steps = np.clip(np.ceil(scale / unit - 1e-4), 1, form.scale_levels)
        scale = steps.astype(np.float32) * unit
    if not form.symmetric:
        zero_point = np.clip(np.rint(form.low - low / scale), form.low, form.high).astype(np.int32)
    return Grid(scale.astype(np.float32), zero_point)


def expanded(grid: Grid, problem: WeightProblem) -> tuple[Matrix, NDArray[np.int32]]:
    """Scale and zero point of every weight, broadcast to [N, K]."""
    shape = problem.weight.shape
    repeat = problem.format.group or shape[1]
    repeat = repeat if grid.scale.shape[1] > 1 else 1  # one scale a row is broadcast
    scale, zero = np.repeat(grid.scale, repeat, axis=1), np.repeat(grid.zero_point, repeat, axis=1)
    return np.broadcast_to(scale, shape), np.broadcast_to(zero, shape)


def round_to(grid: Grid, problem: WeightProblem) -> RoundedWeight:
    """Every weight to the nearest integer of its grid."""
    groups = grouped(problem)
    integers = np.empty(groups.shape, np.int32)
    for part in runs_of_rows(groups):
        rounded = groups[part] / grid.scale[part, :, None]
        np.rint(rounded, out=rounded)
        rounded += grid.zero_point[part, :, None].astype(np.float32)  # exact: all integers of a weight are
        integers[part] = np.clip(rounded, problem.format.low, problem.format.high, out=rounded)
    return RoundedWeight(integers.reshape(problem.weight.shape), grid)


def runs_of_rows(groups: Matrix) -> list[slice]:
    """What [N, G, group] is cut into so that each piece fits a core's cache, if a row does."""
    step = max(1, CHUNK // max(groups.shape[1] * groups.shape[2], 1))
    return [slice(start, start + step) for start in range(0, max(len(groups), 1), step)]


def dequantized(rounded: RoundedWeight, problem: WeightProblem) -> Matrix:
    """The weight [N, K] that the integers stand for."""
    scale, zero = expanded(rounded.grid, problem)
    return (rounded.integers - zero).astype(np.float32) * scale
