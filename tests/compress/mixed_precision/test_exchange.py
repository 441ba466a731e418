"""Exchanging bits: within the budget, never worse, best among all neighbours by what is measured, and no prey of chance."""

import itertools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from pocketport.compress.mixed_precision.allocation import Allocation, Layer, allocate
from pocketport.compress.mixed_precision.exchange import exchange, shrunk
from pocketport.compress.mixed_precision.pairs import allocate_pairs

BITS = (2, 3, 4, 5, 6, 8)
COUNT = 5
SAMPLES = 4000

Floats = NDArray[np.float64]


def layers_of(rng: np.random.Generator) -> list[Layer]:
    return [
        Layer(f"l{i}", (), (f"w{i}",), size := int(rng.integers(50, 200)), {f"w{b}": b * size / 8 for b in BITS})
        for i in range(COUNT)
    ]


def falling(layers: Sequence[Layer], sizes: Floats) -> dict[str, dict[str, dict[str, float]]]:
    """Errors that fall with the bits, each layer's from its own size."""
    return {
        layer.weights[0]: {f"w{b}": {"loss": size * 4.0**-b} for b in BITS}
        for layer, size in zip(layers, sizes.tolist(), strict=True)
    }


def apart(layers: Sequence[Layer]) -> dict[str, dict[str, Floats]]:
    """Effects that have nothing to do with each other."""
    return {layer.weights[0]: {f"w{b}": np.zeros(2) for b in BITS} for layer in layers}


def budget_of(layers: Sequence[Layer]) -> float:
    return 4.2 / 8 * sum(layer.elements for layer in layers)


def near(best: Allocation, layers: Sequence[Layer]) -> list[dict[str, str]]:
    """Every allocation within the budget in which no layer's scheme is further off than the next one."""
    own = [
        [f"w{b}" for b in BITS if abs(BITS.index(b) - BITS.index(int(best.schemes[layer.name][1:]))) < 2]
        for layer in layers
    ]
    every = (dict(zip((layer.name for layer in layers), schemes, strict=True)) for schemes in itertools.product(*own))
    return [s for s in every if sum(layer.costs[s[layer.name]] for layer in layers) <= budget_of(layers)]


@pytest.mark.parametrize("seed", range(8))
def test_no_neighbour_is_better(seed: int) -> None:
    rng = np.random.default_rng(seed)
    layers = layers_of(rng)
    thought = falling(layers, np.exp(rng.standard_normal(COUNT)))
    truth = falling(layers, np.exp(2 * rng.standard_normal(COUNT)))
    start, asked = allocate(layers, thought, budget_of(layers), "loss"), list[Allocation]()

    def lost(schemes: dict[str, str]) -> float:
        return sum(layer.error(truth, schemes[layer.name], "loss") for layer in layers)

    def measure(allocation: Allocation) -> list[float]:
        asked.append(allocation)
        return [lost(dict(allocation.schemes))] * 2

    one = exchange(layers, thought, apart(layers), start, budget_of(layers), measure, 1)
    assert len(asked) <= 2 * COUNT + 5
    best = exchange(layers, thought, apart(layers), start, budget_of(layers), measure, 20)
    least = min(lost(schemes) for schemes in near(best, layers))
    assert lost(dict(best.schemes)) == pytest.approx(least)
    assert lost(dict(best.schemes)) <= lost(dict(one.schemes)) <= lost(dict(start.schemes))
    assert best.cost == sum(layer.costs[best.schemes[layer.name]] for layer in layers) <= budget_of(layers)


@pytest.mark.parametrize("seed", range(4))
def test_what_pairs_lose_is_not_measured_but_known(seed: int) -> None:
    """Beside pairs each layer loses what no model knows; a knapsack over single changes would take those that meet together."""
    rng = np.random.default_rng(seed)
    layers = layers_of(rng)
    mixed = rng.standard_normal((SAMPLES, 2)) @ rng.standard_normal((2, COUNT))
    effects = {
        layer.weights[0]: {f"w{b}": own * 2.0**-b for b in BITS} for layer, own in zip(layers, mixed.T, strict=True)
    }
    errors = {
        w: {s: {"loss": float(np.square(values).sum() / 2)} for s, values in own.items()} for w, own in effects.items()
    }
    more = falling(layers, rng.exponential(2, COUNT))

    def measured(schemes: dict[str, str]) -> Floats:
        together = np.sum([effects[layer.weights[0]][schemes[layer.name]] for layer in layers], axis=0)
        found: Floats = together**2 / 2 + sum(layer.error(more, schemes[layer.name], "loss") for layer in layers)
        return found

    start = allocate_pairs(
        layers, errors, effects, allocate(layers, errors, budget_of(layers), "loss"), budget_of(layers)
    )
    best = exchange(layers, errors, effects, start, budget_of(layers), lambda a: measured(dict(a.schemes)).tolist(), 5)
    least = min(measured(schemes).sum() for schemes in near(best, layers))
    assert measured(dict(best.schemes)).sum() <= 1.02 * least
    assert least < measured(dict(start.schemes)).sum()
    together = np.sum([effects[layer.weights[0]][best.schemes[layer.name]] for layer in layers], axis=0)
    assert best.error == pytest.approx(float(np.square(together).sum() / 2), rel=0.05)


@pytest.mark.parametrize("seed", range(16))
def test_chance_moves_next_to_nothing(seed: int) -> None:
    """Layers lose what they are thought to, but each measurement of a few samples is off by 0.3 of the whole."""
    rng = np.random.default_rng(seed)
    layers = layers_of(rng)
    thought = falling(layers, np.exp(rng.standard_normal(COUNT)))
    start = allocate(layers, thought, budget_of(layers), "loss")

    def lost(allocation: Allocation) -> float:
        return sum(layer.error(thought, allocation.schemes[layer.name], "loss") for layer in layers)

    def measure(allocation: Allocation) -> Floats:
        noise = rng.standard_normal(16)
        found: Floats = lost(allocation) + 0.3 * lost(start) * np.sqrt(16) * noise
        return found

    found = exchange(layers, thought, apart(layers), start, budget_of(layers), lambda a: measure(a).tolist(), 1)
    assert lost(found) <= 1.1 * lost(start)


def test_means_are_shrunk_by_what_they_vary() -> None:
    rng = np.random.default_rng(0)
    truth = rng.standard_normal(2000)
    for noise in (0.0, 1.0, 10.0):
        values = truth[:, None] + noise * rng.standard_normal((2000, 4))
        kept = shrunk(values) @ values.mean(1) / np.square(values.mean(1)).sum()
        assert kept == pytest.approx(1 / (1 + noise**2 / 4), abs=0.05)  # the share of the truth in the means' variance
    assert not shrunk(np.zeros((3, 2))).any()
    assert not shrunk(np.array([[1.0, -1.0], [-2.0, 2.0]])).any()


def test_what_measures_no_better_is_left_alone() -> None:
    rng = np.random.default_rng(0)
    layers = layers_of(rng)
    thought = falling(layers, np.exp(rng.standard_normal(COUNT)))
    start = allocate(layers, thought, budget_of(layers), "loss")
    for measure, rounds in ((lambda a: [float(a.schemes != start.schemes)] * 2, 3), (lambda _: [1.0, 1.0], 0)):
        assert exchange(layers, thought, apart(layers), start, budget_of(layers), measure, rounds) is start


def test_one_scheme_leaves_nothing_to_exchange() -> None:
    rng = np.random.default_rng(0)
    layers = [replace(layer, costs={"w4": layer.costs["w4"]}) for layer in layers_of(rng)]
    thought = falling(layers, np.ones(COUNT))
    start = allocate(layers, thought, budget_of(layers), "loss")
    assert exchange(layers, thought, apart(layers), start, budget_of(layers), lambda _: [1.0, 1.0], 1) is start
