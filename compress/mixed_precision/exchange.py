"""Bits exchanged between the layers of an allocation by what that measures in it, where error models foretell otherwise.

Errors of layers meet each other, in few bits by more than second order, so that what a layer's bits are worth depends on what
all others have. In the allocation as it is each layer alone gets its next larger and its next smaller scheme, and is measured.
What that differs by from what pairs of layers foretell is partly chance, a few samples making most of it: it is shrunk by its
own variance (James and Stein 1961; Efron and Morris 1973, doi 10.2307/2284155) and added to what the layer loses alone. With
terms for pairs the best allocation is then searched again, once freely and under ever higher thresholds that each change has
to be worth: many small changes together do other than the sum of them. The best of these that is measured stays.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketport.compress.mixed_precision.allocation import Allocation, Layer
from pocketport.compress.mixed_precision.knapsack import Options, steps
from pocketport.compress.mixed_precision.pairs import Choices, Effects, Floats, Places
from pocketport.compress.mixed_precision.sensitivity import LOSS, Errors

EXCHANGED = "exchanged"
THRESHOLDS = (0.5, 1.0, 2.0)  # that a change must gain, in parts of what changes without a threshold gain on average


def exchange(
    layers: Sequence[Layer], errors: Mapping[str, Mapping[str, Errors]], effects: Effects, start: Allocation, budget: float,
    measure: Callable[[Allocation], Sequence[float]], rounds: int,
) -> Allocation:  # fmt: skip
    """An allocation that measures no worse than `start`, within the same budget.

    Args:
        layers: see `allocate`.
        errors: what each weight loses alone; a layer's next schemes are those on the convex hull of costs and errors.
        effects: see `Effects`.
        start: within the budget.
        budget: in the unit of the layers' costs.
        measure: what an allocation loses on each of the same samples, two of them at least; their sum decides.
        rounds: each takes two measurements a layer and at most four more; none follows one that brings nothing.
    """
    best, least = start, np.asarray(measure(start), np.float64)
    for _ in range(rounds):
        kept = [_neighbours(layer, errors, best.schemes[layer.name]) for layer in layers]
        choices = Choices.of(layers, kept, errors, effects)
        present = choices.places(best.schemes)
        others = np.setdiff1d(np.arange(len(choices.owners)), present)[::-1]  # so what lies in front stays computed
        if not len(others):
            break
        measured = np.array([measure(_changed(choices, present, place)) - least for place in others])
        put_right = _put_right(choices, present, others, measured)
        solutions = [choices.allocation(EXCHANGED, chosen) for chosen in _solutions(put_right, present, budget)]
        tried = [(found, np.asarray(measure(found), np.float64)) for found in solutions]
        found, value = min(tried, key=lambda own: float(own[1].sum()), default=(best, least))
        if value.sum() >= least.sum():
            break
        best, least = found, value
    return best


def _neighbours(layer: Layer, errors: Mapping[str, Mapping[str, Errors]], own: str) -> list[str]:
    """The layer's scheme, and the next ones on the hull that take less and more."""
    schemes = list(layer.costs)
    costs = np.array([layer.costs[s] for s in schemes], np.float64)
    hull = [schemes[i] for i in steps(Options(costs, np.array([layer.error(errors, s, LOSS) for s in schemes])))]
    smaller = [s for s in hull if layer.costs[s] < layer.costs[own]][-1:]
    larger = [s for s in hull if layer.costs[s] > layer.costs[own]][:1]
    return [*smaller, own, *larger]


def _changed(choices: Choices, present: Places, place: int) -> Allocation:
    """With one choice in the place of its layer's."""
    chosen = present.copy()
    chosen[choices.owners[place]] = place
    return choices.allocation(EXCHANGED, chosen)


def _put_right(choices: Choices, present: Places, others: Places, measured: NDArray[np.floating[Any]]) -> Choices:
    """The choices with what their changes measure, [n, samples], in the unit of that."""
    foretold, means = choices.changes(present)[others], measured.mean(1)
    size = float(foretold @ foretold)
    scale = max(0.0, float(means @ foretold) / size) if size > 0 else 0.0
    matrix = scale * choices.matrix
    matrix[others, others] += shrunk(measured - scale * foretold[:, None])
    return replace(choices, matrix=matrix)


def shrunk(values: Floats) -> Floats:
    """Means of values [n, samples], all shrunk towards none by as much as they vary by chance."""
    means, samples = values.mean(1), values.shape[1]
    size, chance = float(means @ means), float(values.var(1, ddof=1).sum()) / samples
    found: Floats = means * max(0.0, 1 - chance / size) if size > 0 else means
    return found


def _solutions(choices: Choices, present: Places, budget: float) -> list[Places]:
    """The best allocation without a threshold and with each, those that change anything, each once."""
    free = choices.best(present, budget)
    changes = int((free != present).sum())
    if not changes:
        return []
    gained = (choices.loss(present) - choices.loss(free)) / changes
    changing = np.ones(len(choices.owners))
    changing[present] = 0
    found = {tuple(free): free}
    for threshold in THRESHOLDS:
        matrix = choices.matrix + np.diag(threshold * gained * changing)
        chosen = replace(choices, matrix=matrix).best(present, budget)
        if not np.array_equal(chosen, present):
            found.setdefault(tuple(chosen), chosen)
    return list(found.values())
