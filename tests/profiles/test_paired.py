"""Ratios of things measured turn by turn."""

import math

import numpy as np
import pytest

from pocketport.errors import UsageError
from pocketport.profiles.paired import FEWEST_TURNS, median_deviation, paired_ratio


@pytest.mark.parametrize(  # Conover, table of order statistics for the median at 95 %: smallest and largest kept, from 1
    ("count", "lowest", "highest"), [(6, 1, 6), (8, 1, 8), (9, 2, 8), (10, 2, 9), (15, 4, 12), (20, 6, 15), (25, 8, 18)]
)
def test_the_interval_is_that_of_the_table(count: int, lowest: int, highest: int) -> None:
    ratio = paired_ratio(np.arange(1, count + 1), np.ones(count))
    assert (ratio.low, ratio.high, ratio.turns) == (lowest, highest, count)
    assert ratio.value == (count + 1) / 2


def test_few_turns_prove_nothing() -> None:
    ratio = paired_ratio([2.0] * (FEWEST_TURNS - 1), [1.0] * (FEWEST_TURNS - 1))
    assert (ratio.value, ratio.low, ratio.high) == (2.0, 0.0, math.inf)
    assert not ratio.longer and not ratio.shorter


def test_drift_cancels_and_the_interval_holds_the_truth() -> None:
    rng, held, turns = np.random.default_rng(0), 0, 25
    for _ in range(400):
        drift = np.exp(rng.normal(0, 1, turns)) * np.linspace(1, 5, turns)
        first, second = (factor * drift * np.exp(rng.normal(0, 0.05, turns)) for factor in (1.1, 1.0))
        ratio = paired_ratio(first, second)
        held += ratio.low <= 1.1 <= ratio.high
        assert ratio.high - ratio.low < 0.15, "the drift is a factor of 5, the noise 7 %"
    assert held / 400 >= 0.93  # 95.7 % are expected of 25 turns


def test_unequal_turns_are_an_error() -> None:
    with pytest.raises(UsageError):
        paired_ratio([1.0, 2.0], [1.0])
    with pytest.raises(UsageError):
        paired_ratio([], [])


def test_median_deviation() -> None:
    assert median_deviation([1, 2, 3, 100]) == 1.0
