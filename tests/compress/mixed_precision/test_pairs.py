"""Pairs of layers: what meets and what cancels is known, few samples are not trusted, and the search finds the best."""

import itertools

import numpy as np
import pytest

from pocketport.compress.mixed_precision.allocation import Layer, allocate
from pocketport.compress.mixed_precision.pairs import allocate_pairs, losses

BITS = (2, 3, 4, 6)
COUNT = 5
SAMPLES = 4000


def problem(seed: int, samples: int = SAMPLES) -> tuple[list[Layer], dict, dict]:
    """Layers, what they lose alone, and effects: every scheme has a direction of its own, some of which are alike."""
    rng = np.random.default_rng(seed)
    layers = [
        Layer(f"l{i}", (), (f"w{i}",), size := int(rng.integers(50, 200)), {f"w{b}": b * size / 8 for b in BITS})
        for i in range(COUNT)
    ]
    mixing = rng.standard_normal((COUNT * len(BITS), 4))
    sizes = np.exp(rng.standard_normal(COUNT))[:, None] * 2.0 ** -np.array(BITS)
    found = rng.standard_normal((samples, 4)) @ mixing.T * sizes.ravel()
    effects = {
        layer.weights[0]: {f"w{b}": found[:, i * len(BITS) + j] for j, b in enumerate(BITS)}
        for i, layer in enumerate(layers)
    }
    errors = {
        w: {s: {"loss": float(np.square(values).sum() / 2)} for s, values in own.items()} for w, own in effects.items()
    }
    return layers, errors, effects


@pytest.mark.parametrize("seed", range(6))
def test_the_best_of_all_allocations_is_found(seed: int) -> None:
    layers, errors, effects = problem(seed)
    budget = 3.6 / 8 * sum(layer.elements for layer in layers)
    start = allocate(layers, errors, budget, "loss")
    found = allocate_pairs(layers, errors, effects, start, budget)

    def lost(schemes: tuple[str, ...]) -> float:
        together = sum(np.array(effects[layer.weights[0]][s]) for layer, s in zip(layers, schemes, strict=True))
        return float(np.square(together).sum() / 2)

    def cost(schemes: tuple[str, ...]) -> float:
        return sum(layer.costs[s] for layer, s in zip(layers, schemes, strict=True))

    every = itertools.product(*(layer.costs for layer in layers))
    least = min(lost(schemes) for schemes in every if cost(schemes) <= budget)
    chosen = tuple(found.schemes[layer.name] for layer in layers)
    assert found.cost == pytest.approx(cost(chosen)) and found.cost <= budget
    assert found.error == pytest.approx(lost(chosen), rel=0.05)  # correlations are shrunk a little
    assert lost(chosen) <= 1.05 * least
    assert lost(chosen) <= lost(tuple(start.schemes[layer.name] for layer in layers))


def test_what_cancels_is_told_from_what_meets() -> None:
    rng = np.random.default_rng(0)
    effect = rng.standard_normal(SAMPLES)
    owners = np.array([0, 1, 2, 2])
    effects = np.stack([effect, -effect, effect, rng.standard_normal(SAMPLES)])
    found = losses(np.array([1.0, 4.0, 9.0, 1.0]), effects, owners)
    assert found.diagonal() == pytest.approx([1, 4, 9, 1])
    assert found[0, 1] == pytest.approx(-2, rel=0.02) and found[0, 2] == pytest.approx(3, rel=0.02)
    assert abs(found[0, 3]) < 0.1 and found[2, 3] == 0  # a layer has one scheme
    assert np.array_equal(found, found.T)


def test_few_samples_are_not_trusted() -> None:
    """Effects that have nothing to do with each other: correlations by chance count for little, one sample for nothing."""
    rng = np.random.default_rng(0)
    for samples in (1, 10, 100):
        found = losses(np.ones(40), rng.standard_normal((40, samples)), np.arange(40))
        off = found[~np.eye(40, dtype=bool)]
        assert np.abs(off).max() < 0.2, samples
    assert not losses(np.ones(3), np.zeros((3, 5)), np.arange(3))[0, 1:].any()
