"""The multiple-choice knapsack, exactly: one option for each layer, least summed error within a budget.

Dynamic programming over the layers keeps every pair (cost, error) that no other one beats in both. Of those go the ones
that cannot end better than a solution already known, by the bound of the linear relaxation, which is solved greedily on
the lower convex hulls of the layers' options (Sinha and Zoltners 1979, doi 10.1287/opre.27.3.503; the combination with
dynamic programming is that of Dyer, Riha and Walker 1995, doi 10.1016/0377-2217(94)00109-2). Costs and errors may be
any real numbers.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pocketport.errors import UsageError

Floats = NDArray[np.float64]
SLACK = 1e-12  # of the sums, relative: in another order they differ by less


@dataclass(frozen=True)
class Options:
    """What one layer may become: cost [n] and error [n] of each option."""

    costs: Floats
    errors: Floats


@dataclass(frozen=True)
class Selection:
    """The option of each layer, with what they sum to."""

    indices: tuple[int, ...]
    cost: float
    error: float


def solve(layers: Sequence[Options], budget: float) -> Selection:
    """The selection of least Σ error with Σ cost ≤ `budget`.

    Args:
        layers: each with at least one option; all numbers finite, at least 0.
        budget: in the unit of the costs.

    Raises:
        UsageError: even the cheapest options together cost more.
    """
    cheapest = float(sum(layer.costs.min() for layer in layers))
    if cheapest > budget * (1 + SLACK):
        raise UsageError(
            f"the cheapest schemes together take {cheapest:,.0f}, the budget is {budget:,.0f}",
            where="mixed precision",
            fix="give a larger budget, or cheaper schemes",
        )
    budget *= 1 + SLACK
    kept = [undominated(layer) for layer in layers]
    hulls = [_hull(layer.costs[k], layer.errors[k]) for layer, k in zip(layers, kept, strict=True)]
    # The layers with most at stake come first, so that bounds are tight early.
    order = sorted(range(len(layers)), key=lambda i: -_span(layers[i].errors[kept[i]]))
    known = _greedy(hulls, budget) + SLACK * sum(float(layer.errors.max()) for layer in layers)
    costs, errors, trail = np.zeros(1), np.zeros(1), list[tuple[NDArray[np.int64], NDArray[np.int64]]]()
    for step, index in enumerate(order):
        own = kept[index]
        grown = costs[:, None] + layers[index].costs[own], errors[:, None] + layers[index].errors[own]
        costs, errors = (g.ravel() for g in grown)
        rest = _Relaxation([hulls[i] for i in order[step + 1 :]])
        bound = errors + rest.least(budget - costs)
        alive = np.flatnonzero(bound <= known)
        alive = alive[_front(costs[alive], errors[alive])]
        trail.append((alive // len(own), own[alive % len(own)]))
        costs, errors = costs[alive], errors[alive]
    best = int(np.argmin(errors))
    cost, error = float(costs[best]), float(errors[best])
    chosen = [0] * len(layers)
    for index, (parents, options) in zip(reversed(order), reversed(trail), strict=True):
        chosen[index] = int(options[best])
        best = int(parents[best])
    return Selection(tuple(chosen), cost, error)


def steps(layer: Options) -> list[int]:
    """Places of the options on the lower convex hull of costs and errors, by rising cost."""
    kept = undominated(layer)
    return [int(kept[i]) for i in _corners(layer.costs[kept], layer.errors[kept])]


class _Relaxation:
    """The linear relaxation over some layers: least error as a convex function of the budget."""

    def __init__(self, hulls: Sequence[tuple[Floats, Floats]]) -> None:
        self._base = float(sum(costs[0] for costs, _ in hulls))
        steps = [(np.diff(costs), np.diff(errors)) for costs, errors in hulls]
        widths = np.concatenate([np.zeros(0), *(w for w, _ in steps)])
        gains = np.concatenate([np.zeros(0), *(g for _, g in steps)])
        order = np.argsort(gains / widths, kind="stable")
        self._costs = np.concatenate([[0.0], np.cumsum(widths[order])])
        start = float(sum(errors[0] for _, errors in hulls))
        self._errors = start + np.concatenate([[0.0], np.cumsum(gains[order])])

    def least(self, budgets: Floats) -> Floats:
        """The bound for each budget; infinite where not even the cheapest options fit."""
        left = budgets - self._base
        return np.where(left < 0, np.inf, np.interp(left, self._costs, self._errors))


def undominated(layer: Options) -> NDArray[np.int64]:
    """Options that no other one beats in both, by rising cost."""
    order = np.lexsort((layer.errors, layer.costs))
    return order[_front(layer.costs[order], layer.errors[order])]


def _front(costs: Floats, errors: Floats) -> NDArray[np.int64]:
    """Places of the pairs that no other one beats in both, by rising cost."""
    order = np.lexsort((errors, costs))
    least = np.minimum.accumulate(errors[order])
    better = np.ones(len(order), bool)
    better[1:] = errors[order][1:] < least[:-1]
    return order[better]


def _hull(costs: Floats, errors: Floats) -> tuple[Floats, Floats]:
    """The lower convex hull of options that are sorted and undominated."""
    points = _corners(costs, errors)
    return costs[points], errors[points]


def _corners(costs: Floats, errors: Floats) -> list[int]:
    """Places of its corners."""
    points: list[int] = []
    for i in range(len(costs)):
        while len(points) > 1 and _above(costs, errors, points[-2], points[-1], i):
            points.pop()
        points.append(i)
    return points


def _above(costs: Floats, errors: Floats, a: int, b: int, c: int) -> bool:
    """Whether b lies on or above the line from a to c."""
    return bool((errors[b] - errors[a]) * (costs[c] - costs[a]) >= (errors[c] - errors[a]) * (costs[b] - costs[a]))


def _span(errors: Floats) -> float:
    return float(errors.max() - errors.min())


def _greedy(hulls: Sequence[tuple[Floats, Floats]], budget: float) -> float:
    """The error of a solution that fits: steps along the hulls by what they gain a unit of cost, as far as they fit."""
    left = budget - sum(float(costs[0]) for costs, _ in hulls)
    error = sum(float(errors[0]) for _, errors in hulls)
    steps = sorted(
        (float((errors[i + 1] - errors[i]) / (costs[i + 1] - costs[i])), layer, i)
        for layer, (costs, errors) in enumerate(hulls)
        for i in range(len(costs) - 1)
    )
    place = [0] * len(hulls)
    for _, layer, i in steps:
        costs, errors = hulls[layer]
        width = float(costs[i + 1] - costs[i])
        if place[layer] == i and width <= left:
            place[layer], left = i + 1, left - width
            error += float(errors[i + 1] - errors[i])
    return error
