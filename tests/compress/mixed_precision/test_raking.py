"""Factors of errors from sums over groups."""

import numpy as np
import pytest

from pocketport.compress.mixed_precision.raking import raked


@pytest.mark.parametrize("seed", range(5))
def test_factors_of_kinds_and_depths_are_found_again(seed: int) -> None:
    rng = np.random.default_rng(seed)
    kinds, depths = np.repeat(list("qkvogud"), 12), np.tile(np.repeat(list("0123"), 3), 7)
    errors = rng.lognormal(0, 2, 84)
    wanted = np.repeat(rng.lognormal(0, 1, 7), 12) * np.tile(np.repeat(rng.lognormal(0, 1, 4), 3), 7)
    sums = [
        {group: float((errors * wanted)[labels == group].sum()) for group in set(labels)} for labels in (kinds, depths)
    ]
    found = raked(errors, [list(kinds), list(depths)], sums)
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


def test_groupings_that_disagree_meet_in_the_middle() -> None:
    found = raked(np.ones(4), ["aabb", "cdcd"], [{"a": 1.0, "b": 3.0}, {"c": 4.0, "d": 4.0}])
    np.testing.assert_allclose(found, [0.75, 0.75, 2.25, 2.25])


def test_what_costs_nothing_stays_so() -> None:
    np.testing.assert_array_equal(raked(np.zeros(2), ["ab"], [{"a": 0.0, "b": 0.0}]), [1, 1])
    np.testing.assert_allclose(raked(np.array([0.0, 2.0]), ["ab"], [{"a": 1e-9, "b": 1.0}]), [1, 0.5], rtol=1e-6)
