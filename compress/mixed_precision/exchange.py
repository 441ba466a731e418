"""Bits exchanged between the layers of an allocation by what that measures in it, not by what error models foretell.

Errors of layers meet each other, so that what a layer's bits are worth depends on what all others have. In the allocation as
it is each layer alone gets its next larger and its next smaller scheme, and is measured. Such small changes do add up:
the knapsack over each layer's three schemes by those measurements is solved exactly, and its solution, if it measures
better, is what the next round starts from.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from pocketport.compress.mixed_precision.allocation import Allocation, Layer
from pocketport.compress.mixed_precision.knapsack import Options, solve, steps
from pocketport.compress.mixed_precision.sensitivity import LOSS, Errors

EXCHANGED = "exchanged"


def exchange(
    layers: Sequence[Layer], errors: Mapping[str, Mapping[str, Errors]], start: Allocation, budget: float,
    measure: Callable[[Allocation], float], rounds: int,
) -> Allocation:  # fmt: skip
    """An allocation that measures no worse than `start`, within the same budget.

    Args:
        layers: see `allocate`.
        errors: say which schemes are a layer's next ones: those on the convex hull of costs and errors by the loss.
        start: within the budget.
        budget: in the unit of the layers' costs.
        measure: of an allocation; at least 0, less is better.
        rounds: each takes two measurements a layer and one more; fewer are made where one brings nothing.
    """
    best, least = start, measure(start)
    for _ in range(rounds):
        choices = [_neighbours(layer, errors, best.schemes[layer.name]) for layer in layers]
        backwards = zip(reversed(layers), reversed(choices), strict=True)  # so what lies in front stays computed
        found = [
            [
                least
                if s == best.schemes[layer.name]
                else measure(_of(layers, errors, {**best.schemes, layer.name: s}))
                for s in schemes
            ]
            for layer, schemes in backwards
        ][::-1]
        options = [
            Options(np.array([layer.costs[s] for s in schemes], np.float64), np.array(values) - min(values))
            for layer, schemes, values in zip(layers, choices, found, strict=True)
        ]
        places = solve(options, budget).indices
        chosen = {layer.name: own[i] for layer, own, i in zip(layers, choices, places, strict=True)}
        candidate = _of(layers, errors, chosen)
        value = measure(candidate)
        if value >= least:
            break
        best, least = candidate, value
    return best


def _neighbours(layer: Layer, errors: Mapping[str, Mapping[str, Errors]], own: str) -> list[str]:
    """The layer's scheme, and the next ones on the hull that take less and more."""
    schemes = list(layer.costs)
    costs = np.array([layer.costs[s] for s in schemes], np.float64)
    hull = [schemes[i] for i in steps(Options(costs, np.array([layer.error(errors, s, LOSS) for s in schemes])))]
    smaller = [s for s in hull if layer.costs[s] < layer.costs[own]][-1:]
    larger = [s for s in hull if layer.costs[s] > layer.costs[own]][:1]
    return [*smaller, own, *larger]


def _of(layers: Sequence[Layer], errors: Mapping[str, Mapping[str, Errors]], schemes: Mapping[str, str]) -> Allocation:
    cost = sum(layer.costs[schemes[layer.name]] for layer in layers)
    error = sum(layer.error(errors, schemes[layer.name], LOSS) for layer in layers)
    return Allocation(EXCHANGED, schemes, cost, error)
