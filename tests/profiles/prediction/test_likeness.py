"""Corrections from graphs alike, against the textbook's formula."""

import numpy as np
import pytest

from pocketport.profiles.prediction.features import GraphFeatures, Kind, OpFeatures
from pocketport.profiles.prediction.likeness import LENGTH, NOISE, OWN_LENGTH, description, learnt, nothing
from pocketport.profiles.prediction.roofline import KINDS, Rates, Work

RATES = Rates(np.full(len(KINDS), 0.1), 0.01, 0.1, 15.0, (0.001, 0.002), 0.01, 0.2)


def graph(kind: Kind, size: int) -> GraphFeatures:
    shape = (1, 64, size, size)
    return GraphFeatures((OpFeatures(str(kind), kind, 64 * 64 * size * size, 4096, (shape,), shape),) * 20, 0)


def test_posterior_means_by_hand() -> None:
    """Three graphs on two devices: the second device's errors are further apart, by what is its own."""
    work = Work.of([graph(Kind.CONV, 32), graph(Kind.CONV, 48), graph(Kind.SOFTMAX, 64)], "float")
    shared, beside = np.array([0.3, 0.1, -0.2]), np.array([0.05, -0.02, 0.1])
    x = description(work, RATES)
    graphs, devices = np.tile(np.arange(3), 2), np.repeat([0, 1], 3)
    found = learnt(x, graphs, devices, np.concatenate([shared - beside, shared + beside]), 3)

    def posterior(errors: np.ndarray, length: float) -> np.ndarray:
        k = np.array([[np.exp(-np.sum((a - b) ** 2) / (2 * length**2)) for b in x] for a in x])
        return np.asarray(k @ np.linalg.inv(k + NOISE * np.eye(3)) @ errors)

    common = posterior(shared, LENGTH)
    assert np.log(found.factors(x)) == pytest.approx(common)
    assert np.log(found.factors(x, 1)) == pytest.approx(common + posterior(beside, OWN_LENGTH))
    assert np.log(found.factors(x, 0)) == pytest.approx(common - posterior(beside, OWN_LENGTH))
    assert np.log(found.factors(x, 2)) == pytest.approx(common)  # nothing was measured on it


def test_a_device_knows_only_its_own_graphs() -> None:
    work = Work.of([graph(Kind.CONV, 32), graph(Kind.SOFTMAX, 64)], "float")
    x = description(work, RATES)
    found = learnt(x, np.array([0, 0, 0, 1]), np.array([0, 1, 2, 1]), np.array([0.0, 0.2, 0.0, 0.1]), 3)
    assert found.own[0].tolist() == [0.0, 0.0]
    assert np.log(found.factors(x, 1))[0] > 0.15
    assert np.log(found.factors(x, 0))[0] == pytest.approx(0.0, abs=1e-3)


def test_graphs_unlike_all_others_are_left_alone() -> None:
    work = Work.of([graph(Kind.CONV, 32), graph(Kind.CONV, 40)], "float")
    x = description(work, RATES)
    found = learnt(x, np.array([0, 0, 1]), np.array([0, 1, 0]), np.array([0.2, 0.4, 0.3]), 2)
    other = description(Work.of([graph(Kind.SOFTMAX, 512)], "float"), RATES)
    assert found.factors(other, 0)[0] == pytest.approx(1.0, abs=1e-3)
    assert found.factors(x)[0] > 1.15
    assert nothing(2).factors(x, 1).tolist() == [1.0, 1.0]


def test_one_graph_alone_is_not_shared() -> None:
    """A graph that takes twice the predicted time says nothing about those like it."""
    work = Work.of([graph(Kind.CONV, 32), graph(Kind.CONV, 40)], "float")
    x = description(work, RATES)
    none, twice = (learnt(x, np.array([0, 1]), np.array([0, 0]), np.array([0.1, e]), 1).factors(x) for e in (0.0, 0.7))
    assert twice == pytest.approx(none)
