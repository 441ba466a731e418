"""The roofline against sums by hand."""

import numpy as np
import pytest

from pocketport.profiles.prediction.features import GraphFeatures, Kind, OpFeatures
from pocketport.profiles.prediction.roofline import KINDS, Factors, Rates, Work, milliseconds

CONV = OpFeatures("Conv", Kind.CONV, 64 * 64 * 56 * 56 * 9, 64 * 64 * 9, ((1, 64, 56, 56),), (1, 64, 56, 56), 9)
ADD = OpFeatures("Add", Kind.ELEMENTWISE, 0, 0, ((1, 64, 56, 56), (1, 64, 56, 56)), (1, 64, 56, 56))
HEAD = OpFeatures("Gemm", Kind.LINEAR, 2048 * 1000, 2048 * 1000 + 1000, ((1, 2048),), (1, 1000))
GRAPH = GraphFeatures((CONV, ADD, HEAD), 100_000)


def rates(**given: float) -> Rates:
    per_work = np.zeros(len(KINDS))
    for kind, rate in given.items():
        per_work[KINDS.index(Kind(kind))] = rate
    return Rates(per_work, 0.05, (0.001, 0.002), 0.1, 0.3)


def test_sum_by_hand() -> None:
    work = Work.of([GRAPH], "float")
    ms = milliseconds(work, rates(conv=0.2, elementwise=0.02, linear=0.3), Factors())
    conv = max(0.2 * CONV.macs / 1e9, 0.05 * 64 * 64 * 9 * 2 / 1e6) + 0.001
    add = 0.02 * 64 * 56 * 56 / 1e6 + 0.002
    granules = 1024 / 1000  # 1000 outputs take 32 granules of 32
    head = max(0.3 * HEAD.macs / 1e9 * granules, 0.05 * HEAD.weights * 2 / 1e6) + 0.001
    assert ms[0] == pytest.approx(conv + add + head + 0.1 * 0.2 + 0.3)


def test_factors_scale_their_own_parts() -> None:
    work, known = Work.of([GRAPH], "w8a8"), rates(conv=0.2, elementwise=0.02, linear=0.0)
    base = milliseconds(work, known, Factors())[0]
    slow = milliseconds(work, known, Factors(matrix=2.0))[0]
    assert slow - base == pytest.approx(0.2 * CONV.macs / 1e9)
    overhead = milliseconds(work, known, Factors(overhead=3.0))[0]
    assert overhead - base == pytest.approx(2 * (0.001 + 0.002 + 0.001 + 0.3))


def test_activations_beyond_the_chip_go_through_memory() -> None:
    side = 2048
    big = OpFeatures("Add", Kind.ELEMENTWISE, 0, 0, ((1, 8, side, side),), (1, 8, side, side))
    work = Work.of([GraphFeatures((big,), 0)], "float")
    assert work.megabytes[0] == pytest.approx(2 * 8 * side * side * 2 / 1e6 - 8.0)


@pytest.mark.parametrize(
    ("precision", "megabytes"), [("float", 4.098), ("w8a8", 2.049), ("w8a16", 2.049), ("w4a16", 1.0245)]
)
def test_weights_are_read_at_their_width(precision: str, megabytes: float) -> None:
    assert Work.of([GraphFeatures((HEAD,), 0)], precision).megabytes[0] == pytest.approx(megabytes)
