"""Palettes of least weighted squared error: one-dimensional k-means over all weights that share a table."""

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from pocketport.compress.algorithms.base import Matrix, column_weights
from pocketport.compress.algorithms.palette import PaletteProblem, PalettizedMatrix, cuts, in_float16

ROUNDS = 100
CHUNK = 1 << 22  # weights clustered at once, if a group has no more
DENSITY_BINS = 512  # of the histogram that the intervals follow
INTERVALS, MOST_INTERVALS = 32, 2048  # an entry has in the mean; all have together, at most
WIDEST = 2  # times the mean, that an entry may have
PRODUCTS = 1 << 20  # sums of the dynamic programme at once: what a core's cache holds

Real = NDArray[np.float64]
Positions = NDArray[np.intp]


def kmeans(problem: PaletteProblem, *, rounds: float = ROUNDS) -> PalettizedMatrix:
    """The best palette over some intervals by dynamic programming, then Lloyd's algorithm over the weights themselves.

    A weight counts by the mean square of its input, so that the sum is the layer's expected squared error but for
    correlations between inputs: SqueezeLLM's weighted k-means (Kim et al. 2023, arXiv 2306.07629) with the second
    derivatives of the layer's own error in the place of the loss's. In one dimension clusters are intervals, which makes
    the optimum a shortest path (Wang and Song 2011, The R Journal 3(2), 29–33); Lloyd (1982, IEEE Trans. Inf. Theory
    28(2), 129–137) alone ends up to a fifth above it where a table has a thousand weights.

    Args:
        problem: see PaletteProblem.
        rounds: of Lloyd's algorithm at most; it ends before when no weight goes to another entry.
    """
    rows, columns = problem.weight.shape
    groups = problem.weight.reshape(rows // problem.group, -1)
    weights = column_weights(problem.importance, columns)
    indices, table = np.empty(groups.shape, np.uint8), np.empty((len(groups), 1 << problem.bits), np.float32)
    at_once = max(1, CHUNK // groups.shape[1])
    for start in range(0, len(groups), at_once):
        part = slice(start, start + at_once)
        indices[part], table[part] = _clustered(groups[part], weights, problem.bits, int(rounds))
    return PalettizedMatrix(indices.reshape(rows, columns), table)


def _clustered(groups: Matrix, weights: Matrix, bits: int, rounds: int) -> tuple[NDArray[np.uint8], Matrix]:
    """Indices and tables of groups [g, n], each of whole rows."""
    order = np.argsort(groups, axis=1, kind="stable")
    values = np.take_along_axis(groups, order, axis=1)
    mass = weights[order % len(weights)].astype(np.float64)
    sums, moments = (np.pad(np.cumsum(m, axis=1), ((0, 0), (1, 0))) for m in (mass, mass * values))
    ends = _best_ends(values, sums, moments, 1 << bits)
    first = np.pad(ends, ((0, 0), (1, 0)))
    table = np.take_along_axis(values, np.minimum(first, values.shape[1] - 1), axis=1).astype(np.float64)
    for _ in range(rounds):
        table = _means(sums, moments, ends, table)
        moved = _positions(values, cuts(table))
        if np.array_equal(moved, ends):
            break
        ends = moved
    rounded = in_float16(table)
    indices = np.empty(values.shape, np.uint8)
    np.put_along_axis(indices, order, _entries(_positions(values, cuts(rounded)), values.shape[1]), axis=1)
    return indices, rounded


def _best_ends(values: Matrix, sums: Real, moments: Real, levels: int) -> Positions:
    """Where among the sorted weights [g, n] every entry but the last ends, [g, levels − 1]: the best over intervals."""
    each = min(INTERVALS, MOST_INTERVALS // levels)
    inner = _positions(values, _quantiles(values, sums, each * levels))
    edges = np.pad(inner, ((0, 0), (1, 1)), constant_values=((0, 0), (0, values.shape[1])))
    ends = np.empty((len(values), levels - 1), np.intp)
    at_once = max(1, PRODUCTS // (edges.shape[1] * WIDEST * each))
    for start in range(0, len(values), at_once):
        part = slice(start, start + at_once)
        mass, moment = (np.take_along_axis(s[part], edges[part], axis=1) for s in (sums, moments))
        ends[part] = np.take_along_axis(edges[part], _shortest_path(mass, moment, levels, WIDEST * each), axis=1)
    return ends


def _quantiles(values: Matrix, sums: Real, count: int) -> Real:
    """Limits of `count` intervals that lie as dense as the cube root of the weights' density, [g, count − 1].

    So do the entries of the best palette where they are many (Panter and Dite 1951, Proc. IRE 39(1), 44–48): intervals
    of that kind are about alike to it.
    """
    edges = np.linspace(values[:, 0], values[:, -1], DENSITY_BINS + 1, axis=1, dtype=np.float64)
    ends = np.pad(_positions(values, edges[:, 1:]), ((0, 0), (1, 0)))
    ends[:, -1] = values.shape[1]
    density = np.cbrt(np.diff(np.take_along_axis(sums, ends, axis=1), axis=1))
    shares = np.pad(np.cumsum(density, axis=1), ((0, 0), (1, 0)))
    wanted = shares[:, -1:] * np.arange(1, count) / count
    bins = np.clip(_positions(shares, wanted) - 1, 0, DENSITY_BINS - 1)
    low, high, left = (np.take_along_axis(a, b, axis=1) for a, b in ((shares, bins), (shares, bins + 1), (edges, bins)))
    width = (edges[:, -1:] - edges[:, :1]) / DENSITY_BINS
    return np.asarray(left + width * (wanted - low) / np.maximum(high - low, np.finfo(np.float64).tiny))


def _shortest_path(mass: Real, moment: Real, levels: int, widths: int) -> Positions:
    """At which edges [g, m + 1] every entry but the last ends, so that Σ moment² / mass of the entries is greatest.

    That is the squared error of the values at their entries' means, but for its sign and a constant. An entry has at most
    `widths` intervals.
    """
    last = mass.shape[1] - 1

    def before(sums: Real, fill: float) -> Real:  # [g, m + 1, widths]: at the edges in front of each edge
        padded = np.pad(sums, ((0, 0), (widths, 0)), constant_values=fill)
        return sliding_window_view(padded, widths, axis=1)[:, :-1]

    width, gain = mass[..., None] - before(mass, 0.0), np.square(moment[..., None] - before(moment, 0.0))
    np.divide(gain, width, out=gain, where=width > 0)
    best = np.where(np.arange(last + 1) == 0, 0.0, -np.inf) * np.ones((len(mass), 1))
    chosen = []
    for _ in range(levels):
        total = before(best, -np.inf) + gain
        total[:, 0, -1] = best[:, 0]  # no weights
        chosen.append(total.argmax(axis=2))
        best = np.take_along_axis(total, chosen[-1][..., None], axis=2)[..., 0]
    end, ends = np.full((len(mass), 1), last, np.intp), []
    for step in reversed(chosen[1:]):
        end = np.maximum(end - widths + np.take_along_axis(step, end, axis=1), 0)
        ends.append(end)
    return np.concatenate(ends[::-1], axis=1)


def _positions(values: NDArray[np.floating], limits: NDArray[np.floating]) -> Positions:
    """How many of the ascending values [g, n] are at most each limit [g, m]: bisection, all at once."""
    low = np.zeros(limits.shape, np.intp)
    high = np.full(limits.shape, values.shape[1], np.intp)
    for _ in range(values.shape[1].bit_length()):
        middle = (low + high) // 2
        below = np.take_along_axis(values, np.minimum(middle, values.shape[1] - 1), axis=1) <= limits
        below &= low < high
        low, high = np.where(below, middle + 1, low), np.where(below, high, middle)
    return low


def _means(sums: Real, moments: Real, ends: Positions, table: Real) -> Real:
    """The weighted mean of the weights of each entry; one that has none stays."""
    ends = np.pad(ends, ((0, 0), (1, 1)), constant_values=((0, 0), (0, sums.shape[1] - 1)))
    mass, moment = (np.diff(np.take_along_axis(s, ends, axis=1), axis=1) for s in (sums, moments))
    return np.asarray(np.divide(moment, mass, out=table.copy(), where=mass > 0))


def _entries(ends: Positions, count: int) -> NDArray[np.uint8]:
    """The entry of each of `count` sorted weights, given where those of every entry but the last end."""
    steps = np.zeros((len(ends), count + 1), np.uint8)
    np.add.at(steps, (np.arange(len(ends))[:, None], ends), 1)
    return np.asarray(np.cumsum(steps, axis=1, dtype=np.uint8)[:, :-1])
