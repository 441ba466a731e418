"""Fitting: what was put in comes out, and groups stay together."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocketport.profiles.prediction.features import GraphFeatures, Kind, OpFeatures
from pocketport.profiles.prediction.fit import Observations, corrected, fit, fit_device, grouped_folds
from pocketport.profiles.prediction.likeness import description
from pocketport.profiles.prediction.roofline import KINDS, Factors, Rates, Work, milliseconds

TRUTH = [Factors(), Factors(2.0, 3.0, 1.5, 2.5), Factors(0.6, 0.5, 0.8, 0.7)]
KINDS_USED = (Kind.CONV, Kind.POINTWISE, Kind.DEPTHWISE, Kind.LINEAR, Kind.SOFTMAX, Kind.ELEMENTWISE)


def true_rates() -> Rates:
    per_work = np.full(len(KINDS), 0.05)
    for kind, rate in zip(KINDS_USED, (0.2, 0.3, 0.01, 0.25, 0.03, 0.02), strict=True):
        per_work[KINDS.index(kind)] = rate
    return Rates(per_work, 0.02, 0.05, 15.0, (0.002, 0.004), 0.03, 0.2)


def graphs(count: int) -> Work:
    noise = np.random.default_rng(0)
    made = []
    for _ in range(count):
        ops = []
        for _ in range(int(noise.integers(5, 60))):
            kind, side, width = (
                noise.choice(np.array(KINDS_USED)),
                int(noise.integers(4, 64)),
                32 * int(noise.integers(1, 9)),
            )
            shape = (1, width, side, side)
            macs = side * side * width * width if kind in (Kind.CONV, Kind.POINTWISE, Kind.LINEAR) else 0
            ops.append(OpFeatures(str(kind), Kind(kind), macs, width * width if macs else 0, (shape,), shape))
        made.append(GraphFeatures(tuple(ops), 3 * 224 * 224))
    return Work.of(made, "float")


def seen(work: Work, rows: np.ndarray, noise: float) -> Observations:
    table = np.log(np.stack([milliseconds(work, true_rates(), f) for f in TRUTH]))
    device, graph = np.meshgrid(np.arange(len(TRUTH)), rows, indexing="ij")
    errors = np.random.default_rng(1).normal(0, noise, device.size)
    return Observations(graph.ravel(), device.ravel(), table[device.ravel(), graph.ravel()] + errors)


def test_latency_of_graphs_that_were_not_fitted() -> None:
    work = graphs(60)
    fitted = fit(work, seen(work, np.arange(40), 0.05), len(TRUTH))
    for own, factors in zip(TRUTH, fitted.factors, strict=True):
        truth = milliseconds(work, true_rates(), own)[40:]
        assert np.median(np.abs(milliseconds(work, fitted.rates, factors)[40:] / truth - 1)) < 0.05


def test_what_a_graph_is_off_by_on_all_devices_counts_once() -> None:
    """Twelve graphs that are off by a third each, on each of three devices: rates stay nearer to those of another precision."""
    work, other = graphs(12), true_rates()
    data = seen(work, np.arange(12), 0.02)
    off = np.random.default_rng(2).normal(0, 0.3, 12)
    shifted = Observations(data.graph, data.device, data.log_ms + off[data.graph])

    def apart(own: float) -> float:
        rates = fit(work, shifted, len(TRUTH), other, own=own, spread=0.5).rates
        return float(np.log(rates.ms_per_work / other.ms_per_work).std())

    assert apart(0.3) < 0.7 * apart(0.0)


def test_what_graphs_alike_are_off_by_is_learnt_for_all_devices_and_for_each() -> None:
    """All graphs take a tenth longer than their rates say, on the second device a fifth."""
    work = graphs(20)
    fitted = fit(work, seen(work, np.arange(20), 0.0), len(TRUTH))
    table = np.log(np.stack([milliseconds(work, fitted.rates, f) for f in fitted.factors]))
    device, graph = (v.ravel() for v in np.meshgrid(np.arange(len(TRUTH)), np.arange(20), indexing="ij"))
    log_ms = table[device, graph] + np.where(device == 1, 0.2, 0.1)
    points = description(work, fitted.rates)
    known = corrected(fitted, work, Observations(graph, device, log_ms), points)
    for index, off in enumerate((0.1, 0.2, 0.1)):
        found = np.log(known.predict(work, points, index)) - table[index]
        assert np.median(found) == pytest.approx(off, abs=0.02)
    elsewhere = np.log(known.elsewhere(work, points, fitted.factors[1])) - table[1]
    assert np.median(elsewhere) == pytest.approx(0.1, abs=0.02)


def test_a_search_that_starts_near_ends_where_others_do() -> None:
    work = graphs(30)
    data = seen(work, np.arange(30), 0.05)
    once = fit(work, data, len(TRUTH))
    fewer = Observations(*(a[data.graph > 0] for a in (data.graph, data.device, data.log_ms)))
    far, near = (fit(work, fewer, len(TRUTH), near=start) for start in (None, once.found))
    predicted = [milliseconds(work, f.rates, Factors()) for f in (far, near)]
    np.testing.assert_allclose(*predicted, rtol=0.02)


def test_one_wild_measurement_moves_little() -> None:
    work = graphs(40)
    data = seen(work, np.arange(40), 0.02)
    wild = data.log_ms.copy()
    wild[3] += 3.0
    clean = fit(work, data, len(TRUTH))
    robust = fit(work, Observations(data.graph, data.device, wild), len(TRUTH))
    difference = np.log(milliseconds(work, robust.rates, Factors()) / milliseconds(work, clean.rates, Factors()))
    assert np.median(np.abs(difference)) < 0.03


def test_narrow_priors_keep_the_proportions_of_another_precision() -> None:
    work, other = graphs(8), true_rates()
    noisy = seen(work, np.arange(8), 0.3)
    wide, narrow = (fit(work, noisy, len(TRUTH), other, spread=spread).rates for spread in (1.0, 0.1))

    def apart(rates: Rates) -> float:
        return float(np.log(rates.ms_per_work / other.ms_per_work).std())

    assert apart(narrow) < 0.5 * apart(wide)


def test_overheads_are_those_of_another_precision() -> None:
    """Four graphs, 30 % off, would move them by more."""
    work, other = graphs(4), true_rates()
    near = fit(work, seen(work, np.arange(4), 0.3), len(TRUTH), other, spread=0.5).rates
    assert np.abs(np.log(np.array(near.ms_per_op) / other.ms_per_op)).max() < 0.3
    assert abs(np.log(near.offset_ms / other.offset_ms)) < 0.3


def test_the_reference_has_no_factors() -> None:
    work = graphs(20)
    fitted = fit(work, seen(work, np.arange(20), 0.02), len(TRUTH))
    assert fitted.factors[0] == Factors()


def test_five_anchors_place_a_device() -> None:
    work = graphs(30)
    truth = np.log(milliseconds(work, true_rates(), TRUTH[1]))
    anchors = np.array([1, 5, 9, 13, 17])
    own = fit_device(work, anchors, truth[anchors], true_rates(), Factors())
    error = np.abs(np.log(milliseconds(work, true_rates(), own)) - truth)
    assert np.median(error) < 0.1


@given(st.lists(st.sampled_from("abcdefghij"), min_size=1, max_size=40), st.integers(1, 12))
def test_groups_are_never_apart(groups: list[str], most: int) -> None:
    folds = grouped_folds(groups, most)
    assert sorted(i for fold in folds for i in fold) == list(range(len(groups)))
    where = {name: {k for k, fold in enumerate(folds) for i in fold if groups[i] == name} for name in groups}
    assert all(len(found) == 1 for found in where.values())
