"""Exchanging bits: within the budget, never worse, and best among all neighbours where what is measured adds up."""

import itertools

import numpy as np
import pytest

from pocketport.compress.mixed_precision.allocation import Allocation, Layer, allocate
from pocketport.compress.mixed_precision.exchange import exchange

BITS = (2, 3, 4, 5, 6, 8)
COUNT = 5


def problem(seed: int) -> tuple[list[Layer], dict, dict]:
    """Layers, what their errors are thought to be, and what they are: other weights for the same fall with the bits."""
    rng = np.random.default_rng(seed)
    layers = [
        Layer(f"l{i}", (), (f"w{i}",), size := int(rng.integers(50, 200)), {f"w{b}": b * size / 8 for b in BITS})
        for i in range(COUNT)
    ]
    thought, truth = (
        {
            layer.weights[0]: {f"w{b}": {"loss": w * 4.0**-b} for b in BITS}
            for layer, w in zip(layers, weights, strict=True)
        }
        for weights in (np.exp(rng.standard_normal(COUNT)), np.exp(2 * rng.standard_normal(COUNT)))
    )
    return layers, thought, truth


@pytest.mark.parametrize("seed", range(8))
def test_no_neighbour_is_better(seed: int) -> None:
    layers, thought, truth = problem(seed)
    budget = 4.2 / 8 * sum(layer.elements for layer in layers)
    start = allocate(layers, thought, budget, "loss")
    asked: list[Allocation] = []

    def measure(allocation: Allocation) -> float:
        asked.append(allocation)
        return sum(truth[layer.weights[0]][allocation.schemes[layer.name]]["loss"] for layer in layers)

    one = exchange(layers, thought, start, budget, measure, 1)
    assert len(asked) <= 2 * COUNT + 2
    best = exchange(layers, thought, start, budget, measure, 20)
    near = [
        [s for s in BITS if abs(BITS.index(s) - BITS.index(int(best.schemes[layer.name][1:]))) < 2] for layer in layers
    ]
    least = min(
        sum(truth[layer.weights[0]][f"w{b}"]["loss"] for layer, b in zip(layers, bits, strict=True))
        for bits in itertools.product(*near)
        if sum(layer.costs[f"w{b}"] for layer, b in zip(layers, bits, strict=True)) <= budget
    )
    assert measure(best) == pytest.approx(least)
    assert measure(best) <= measure(one)
    assert measure(one) <= measure(start)
    assert best.cost == sum(layer.costs[best.schemes[layer.name]] for layer in layers) <= budget


def test_what_measures_no_better_is_left_alone() -> None:
    layers, thought, _ = problem(0)
    budget = 4.2 / 8 * sum(layer.elements for layer in layers)
    start = allocate(layers, thought, budget, "loss")
    assert exchange(layers, thought, start, budget, lambda a: float(a.schemes != start.schemes), 3) is start
    assert exchange(layers, thought, start, budget, lambda _: 1.0, 0) is start
