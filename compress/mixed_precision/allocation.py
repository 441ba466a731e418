"""From errors to a scheme for each layer: what the budget buys."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pocketport.compress.blockwise.segments import layer_number
from pocketport.compress.mixed_precision.knapsack import Options, solve
from pocketport.compress.mixed_precision.sensitivity import Errors
from pocketport.compress.recipe import Rule

STRETCHES = 4


@dataclass(frozen=True)
class Node:
    """Where a rule finds a weight: its component (``*`` for several) and node."""

    component: str
    name: str


@dataclass(frozen=True)
class Layer:
    """Weights that take one scheme together.

    Attributes:
        name: of the first of its nodes.
        nodes: those that compute with its weights.
        weights: their names, as the errors know them.
        elements: of all weights together.
        costs: scheme → what it takes of the budget (bytes or seconds).
    """

    name: str
    nodes: tuple[Node, ...]
    weights: tuple[str, ...]
    elements: int
    costs: Mapping[str, float]

    def error(self, errors: Mapping[str, Mapping[str, Errors]], scheme: str, model: str) -> float:
        """Summed over its weights."""
        return sum(errors[weight][scheme][model] for weight in self.weights)


@dataclass(frozen=True)
class Allocation:
    """A scheme for each layer, the best by one error model.

    Attributes:
        model: see `sensitivity.MODELS`.
        schemes: layer → scheme.
        cost: of all layers.
        error: summed, by the model.
    """

    model: str
    schemes: Mapping[str, str]
    cost: float
    error: float

    def rules(self, layers: Sequence[Layer]) -> list[Rule]:
        """One rule a node."""
        return [
            Rule(component=node.component, name=literal(node.name), scheme=self.schemes[layer.name])
            for layer in layers
            for node in layer.nodes
        ]


def allocate(
    layers: Sequence[Layer], errors: Mapping[str, Mapping[str, Errors]], budget: float, model: str
) -> Allocation:
    """The allocation of least summed error within `budget`.

    Raises:
        UsageError: even the cheapest schemes take more.
    """
    names = [list(layer.costs) for layer in layers]
    options = [
        Options(
            np.array([layer.costs[s] for s in schemes], np.float64),
            np.array([layer.error(errors, s, model) for s in schemes], np.float64),
        )
        for layer, schemes in zip(layers, names, strict=True)
    ]
    found = solve(options, budget)
    chosen = {layer.name: schemes[i] for layer, schemes, i in zip(layers, names, found.indices, strict=True)}
    return Allocation(model, chosen, found.cost, found.error)


def groupings_of(layers: Sequence[Layer]) -> list[list[str]]:
    """Of every layer its kind (``down_proj``), and the stretch of the model's depth that it is in, one of `STRETCHES`."""
    numbers = [layer_number(layer.name) or 0 for layer in layers]
    kinds = [layer.name.rpartition(".")[2] for layer in layers]
    return [kinds, [f"stretch {STRETCHES * number // (max(numbers) + 1)}" for number in numbers]]


def literal(name: str) -> str:
    """The glob that matches a name and nothing else."""
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)
