"""Corrections from graphs alike, against the textbook's formula."""

import numpy as np
import pytest

from pocketport.profiles.prediction.features import GraphFeatures, Kind, OpFeatures
from pocketport.profiles.prediction.likeness import LENGTH, NOISE, NONE, description, learnt
from pocketport.profiles.prediction.roofline import KINDS, Rates, Work

RATES = Rates(np.full(len(KINDS), 0.1), 0.01, 0.1, 15.0, (0.001, 0.002), 0.01, 0.2)


def graph(kind: Kind, size: int) -> GraphFeatures:
    shape = (1, 64, size, size)
    return GraphFeatures((OpFeatures(str(kind), kind, 64 * 64 * size * size, 4096, (shape,), shape),) * 20, 0)


def test_posterior_mean_by_hand() -> None:
    work = Work.of([graph(Kind.CONV, 32), graph(Kind.CONV, 48), graph(Kind.SOFTMAX, 64)], "float")
    errors = np.array([0.3, 0.1, -0.2])
    found = learnt(work, RATES, np.array([0, 1, 2]), errors)
    x = description(work, RATES)
    k = np.array([[np.exp(-np.sum((a - b) ** 2) / (2 * LENGTH**2)) for b in x] for a in x])
    expected = k @ np.linalg.inv(k + NOISE * np.eye(3)) @ errors
    assert np.log(found.factors(work, RATES)) == pytest.approx(expected)


def test_graphs_unlike_all_others_are_left_alone() -> None:
    work = Work.of([graph(Kind.CONV, 32), graph(Kind.CONV, 40)], "float")
    found = learnt(work, RATES, np.array([0, 0, 1]), np.array([0.2, 0.4, 0.3]))
    other = Work.of([graph(Kind.SOFTMAX, 512)], "float")
    assert found.factors(other, RATES)[0] == pytest.approx(1.0, abs=1e-3)
    assert found.factors(work, RATES)[0] > 1.15
    assert NONE.factors(work, RATES).tolist() == [1.0, 1.0]


def test_cliffs_are_not_shared() -> None:
    """A graph that takes twice the predicted time says nothing about those like it."""
    work = Work.of([graph(Kind.CONV, 32), graph(Kind.CONV, 40)], "float")
    shares, cliff = (learnt(work, RATES, np.array([0, 1]), np.array([0.1, e])).factors(work, RATES) for e in (0.0, 0.7))
    assert cliff == pytest.approx(shares)
