"""Conformal intervals hold what they promise."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocketport.profiles.prediction.conformal import bounds, covered, widened


def test_new_measurements_are_covered_as_often_as_promised() -> None:
    """2000 calibration sets of 40 skewed errors each, one new error each: 90 % must lie inside."""
    noise = np.random.default_rng(3)
    errors = noise.gumbel(0.0, 0.3, (2000, 41))
    hits = [covered([float(row[-1])], bounds(row[:-1]))[0] for row in errors]
    assert 0.88 <= np.mean(hits) <= 0.92  # (39 − 2) of 41 ranks, 0.902, and three standard errors


def test_bounds_are_the_ranks_of_the_definition() -> None:
    scores = np.linspace(-1, 1, 99)  # rank ⌈100 · 0.95⌉ = 95 of 99, from either end
    low, high = bounds(scores[::-1])
    assert high == pytest.approx(math.exp(scores[94]))
    assert low == pytest.approx(math.exp(scores[4]))


def test_groups_count_alike() -> None:
    """Forty models with 1 to 12 measurements each, which share most of their error: a new model must be covered."""
    noise, hits = np.random.default_rng(5), []
    for _ in range(400):
        sizes = noise.integers(1, 13, 41)
        own = [noise.normal(0, 0.3) + noise.normal(0, 0.05, n) for n in sizes]
        groups = np.repeat(np.arange(40), sizes[:40])
        interval = bounds(np.concatenate(own[:40]), groups)
        hits.append(covered([float(own[40][0])], interval)[0])
    assert 0.86 <= np.mean(hits) <= 0.97


def test_few_groups_take_students_t() -> None:
    """Five scores with mean 0 and deviation √0.025; t at 95 % and four degrees of freedom is 2.132 in every table."""
    low, high = bounds([-0.2, -0.1, 0.0, 0.1, 0.2])
    width = 2.132 * math.sqrt(0.025) * math.sqrt(1.2)
    assert (math.log(low), math.log(high)) == pytest.approx((-width, width), rel=2e-3)


def test_few_groups_are_covered_as_often_as_promised() -> None:
    """Six models alone promise 5 of 7 by their ranks; with ten devices each they must still hold a seventh's 90 %."""
    noise, hits = np.random.default_rng(7), []
    for _ in range(1000):
        errors = noise.normal(0, 0.3, (7, 1)) + noise.normal(0, 0.05, (7, 10))
        interval = bounds(errors[:6].reshape(-1), np.repeat(np.arange(6), 10))
        hits.append(np.mean(covered(errors[6].tolist(), interval)))
    assert 0.88 <= np.mean(hits) <= 0.97


@given(st.lists(st.floats(-3, 3), min_size=1, max_size=50))
def test_a_prediction_lies_in_its_own_interval(scores: list[float]) -> None:
    low, high = bounds(scores)
    assert 0 < low <= 1 <= high


def test_widening_adds_independent_errors() -> None:
    low, high = widened((math.exp(-0.3), math.exp(0.4)), 0.3)
    assert (math.log(low), math.log(high)) == pytest.approx((-math.sqrt(0.18), 0.5))
