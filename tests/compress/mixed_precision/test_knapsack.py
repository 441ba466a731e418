"""The knapsack's answers against every combination tried out."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pocketport.compress.mixed_precision.knapsack import Options, Selection, solve
from pocketport.errors import UsageError


def brute_force(layers: list[Options], budget: float) -> float:
    best = np.inf
    for choice in product(*(range(len(layer.costs)) for layer in layers)):
        pairs = list(zip(layers, choice, strict=True))
        if sum(layer.costs[i] for layer, i in pairs) <= budget:
            best = min(best, sum(layer.errors[i] for layer, i in pairs))
    return float(best)


def check(layers: list[Options], budget: float, found: Selection) -> None:
    pairs = list(zip(layers, found.indices, strict=True))
    assert found.cost == pytest.approx(sum(layer.costs[i] for layer, i in pairs))
    assert found.error == pytest.approx(sum(layer.errors[i] for layer, i in pairs))
    assert found.cost <= budget * (1 + 1e-9)


LAYER = st.integers(1, 5).flatmap(
    lambda n: st.tuples(
        st.lists(st.integers(0, 20), min_size=n, max_size=n), st.lists(st.floats(0, 10), min_size=n, max_size=n)
    )
)


@settings(max_examples=300, deadline=None)
@given(st.lists(LAYER, min_size=1, max_size=6), st.integers(0, 80))
def test_it_is_the_best_of_all_combinations(described: list[tuple[list[int], list[float]]], budget: int) -> None:
    layers = [Options(np.array(costs, np.float64), np.array(errors)) for costs, errors in described]
    if sum(layer.costs.min() for layer in layers) > budget:
        with pytest.raises(UsageError, match="cheapest"):
            solve(layers, budget)
        return
    found = solve(layers, budget)
    check(layers, budget, found)
    assert found.error == pytest.approx(brute_force(layers, budget), abs=1e-9)


@pytest.mark.parametrize("seed", range(20))
def test_costs_that_are_real_numbers_and_errors_that_fall_as_bits_rise(seed: int) -> None:
    random = np.random.default_rng(seed)
    layers = [
        Options(np.sort(random.uniform(1, 9, 4)), random.lognormal(0, 2) * 4.0 ** -np.arange(4.0)) for _ in range(7)
    ]
    budget = float(sum(layer.costs[0] for layer in layers) * random.uniform(1, 3))
    found = solve(layers, budget)
    check(layers, budget, found)
    assert found.error == pytest.approx(brute_force(layers, budget), rel=1e-12)


def test_a_model_of_many_layers_against_dynamic_programming_on_bytes() -> None:
    """Costs are whole numbers here, so that the textbook's table over every budget can be filled."""
    random = np.random.default_rng(1)
    layers = [
        Options(
            np.array([2.0, 3, 4, 8]) * random.choice([4, 6, 16]),
            random.lognormal(0, 1.5) * 4.0 ** -np.array([2.0, 3, 4, 8]),
        )
        for _ in range(200)
    ]
    budget = int(sum(layer.costs[0] for layer in layers) * 1.7)
    table = np.zeros(budget + 1)
    for layer in layers:
        grown = np.full(budget + 1, np.inf)
        for cost, error in zip(layer.costs.astype(int), layer.errors, strict=True):
            grown[cost:] = np.minimum(grown[cost:], table[: budget + 1 - cost] + error)
        table = grown
    found = solve(layers, budget)
    check(layers, budget, found)
    assert found.error == pytest.approx(float(table[budget]), rel=1e-12)


def test_a_budget_for_everything_takes_the_least_errors() -> None:
    layers = [Options(np.array([1.0, 2.0, 3.0]), np.array([3.0, 1.0, 2.0]))] * 3
    assert solve(layers, 100.0) == Selection((1, 1, 1), 6.0, 3.0)
