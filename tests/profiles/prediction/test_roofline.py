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
    return Rates(per_work, 0.05, 0.4, 15.0, (0.001, 0.002), 0.1, 0.3)


def test_sum_by_hand() -> None:
    work = Work.of([GRAPH], "float")
    ms = milliseconds(work, rates(conv=0.2, elementwise=0.02, linear=0.3), Factors())
    conv = max(0.2 * CONV.macs / 1e9, 0.05 * 64 * 64 * 9 * 2 / 1e6) + 0.001
    add = 0.02 * 64 * 56 * 56 / 1e6 + 0.002
    granules = 1024 / 1000 * 32  # 1000 outputs take 32 granules of 32, one row takes one of 32
    head = max(0.3 * HEAD.macs / 1e9 * granules, 0.05 * HEAD.weights * 2 / 1e6) + 0.001
    assert ms[0] == pytest.approx(conv + add + head + 0.1 * 0.2 + 0.3 * 100 / 130)


def test_factors_scale_their_own_parts() -> None:
    work, known = Work.of([GRAPH], "w8a8"), rates(conv=0.2, elementwise=0.02, linear=0.0)
    base = milliseconds(work, known, Factors())[0]
    slow = milliseconds(work, known, Factors(matrix=2.0))[0]
    assert slow - base == pytest.approx(0.2 * CONV.macs / 1e9)
    overhead = milliseconds(work, known, Factors(overhead=3.0))[0]
    assert overhead - base == pytest.approx(2 * (0.001 + 0.002 + 0.001 + 0.3 * 100 / 130))


def test_attention_scores_beyond_the_chip_go_through_memory() -> None:
    shape = (1, 12, 1568, 1568)
    softmax = OpFeatures("Softmax", Kind.SOFTMAX, 0, 0, (shape,), shape)
    gelu = OpFeatures("Gelu", Kind.ACTIVATION, 0, 0, (shape,), shape)
    work = Work.of([GraphFeatures((softmax, gelu), 0)], "float")
    assert work.spilled.tolist() == [pytest.approx(2 * 12 * 1568 * 1568 * 2 / 1e6 - 8.0), 0.0]
    ms = milliseconds(work, rates(), Factors(memory=2.0))
    assert ms[0] == pytest.approx(2 * 0.4 * work.spilled[0] + 2 * 0.002)  # nothing is handed over


def test_plain_kernels_visit_every_element_of_every_window_and_the_result() -> None:
    mean = OpFeatures("AveragePool", Kind.PLAIN_POOL, 0, 0, ((1, 64, 80, 80),), (1, 64, 79, 79), 4)
    fast = OpFeatures("AveragePool", Kind.POOL, 0, 0, ((1, 64, 80, 80),), (1, 64, 80, 80), 9)
    graph = [GraphFeatures((mean, fast), 0)]
    assert Work.of(graph, "float").visited.tolist() == [0.0, 0.0]
    for precision in ("w8a8", "w8a16"):
        work = Work.of(graph, precision)
        assert work.visited.tolist() == [pytest.approx(64 * 79 * 79 * 5 / 1e6), 0.0]
        ms = milliseconds(work, rates(), Factors(memory=2.0))
        assert ms[0] == pytest.approx(2 * 15.0 * work.visited[0] + 2 * 0.002)


@pytest.mark.parametrize(("rows", "times"), [(197, 3.0), (200, 1.0), (49, 1.0)])
def test_ragged_rows_are_slow_in_8_bits(rows: int, times: float) -> None:
    linear = OpFeatures("Gemm", Kind.LINEAR, rows * 768 * 768, 768 * 768, ((rows, 768),), (rows, 768))
    eight, sixteen = (Work.of([GraphFeatures((linear,), 0)], p).work[0] for p in ("w8a8", "w8a16"))
    assert eight == pytest.approx(times * sixteen)


def test_images_are_computed_in_tiles() -> None:
    """7×7 pixels take one tile of 8 rows and two of 4 columns; 3 input channels cost as 16, 3 channels lie in a block of 32."""
    small = OpFeatures("Conv", Kind.CONV, 32 * 49 * 3 * 9, 864, ((1, 3, 7, 7),), (1, 32, 7, 7), 9)
    thin = OpFeatures("Add", Kind.ELEMENTWISE, 0, 0, ((1, 3, 64, 64),), (1, 3, 64, 64))
    work = Work.of([GraphFeatures((small, thin), 0)], "float").work
    assert work[0] == pytest.approx(small.macs / 1e9 * (8 / 7) ** 2 * 16 / 3)
    assert work[1] == pytest.approx(32 * 64 * 64 / 1e6)


def test_frames_of_a_video_are_computed_in_tiles_too() -> None:
    small = OpFeatures("Conv", Kind.CONV, 64 * 8 * 49 * 64 * 27, 110592, ((1, 64, 8, 7, 7),), (1, 64, 8, 7, 7), 27)
    assert Work.of([GraphFeatures((small,), 0)], "float").work[0] == pytest.approx(small.macs / 1e9 * (8 / 7) ** 2)


def test_a_batch_behind_the_sequence_is_padded() -> None:
    """[length, batch, width]: one sequence lies in a tile of four columns; what is copied and what is batch first is not padded."""
    behind, first = (197, 1, 768), (1, 197, 768)
    ops = [
        OpFeatures("Gelu", Kind.ACTIVATION, 0, 0, (behind,), behind), OpFeatures("Gelu", Kind.ACTIVATION, 0, 0, (first,), first),
        OpFeatures("Transpose", Kind.MOVE, 0, 0, (first,), behind),
    ]  # fmt: skip
    assert Work.of([GraphFeatures(tuple(ops), 0)], "float").work == pytest.approx([4 * 0.151296, 0.151296, 0.151296])


def test_normalizing_a_picture_spreads_its_channels_first() -> None:
    picture, inside = (1, 3, 224, 224), (1, 64, 224, 224)
    ops = [OpFeatures("Sub", Kind.ELEMENTWISE, 0, shape[1], (shape,), shape) for shape in (picture, inside)]
    work = Work.of([GraphFeatures(tuple(ops), 0)], "float").work
    assert work == pytest.approx([5 * 32 * 224 * 224 / 1e6, 64 * 224 * 224 / 1e6])


def test_convolutions_of_few_multiplications_wait_for_their_elements() -> None:
    """A pointwise convolution of 64 to 8 channels multiplies 512 times a pixel, which reads 64 elements and writes a block of 32."""
    thin = OpFeatures("Conv", Kind.POINTWISE, 64 * 8 * 1024, 512, ((1, 64, 32, 32),), (1, 8, 32, 32))
    assert Work.of([GraphFeatures((thin,), 0)], "float").work[0] == pytest.approx(128 * (64 + 32) * 1024 / 1e9)


def test_concatenations_and_splits_compute_nothing() -> None:
    parts, whole = ((1, 32, 56, 56), (1, 32, 56, 56)), (1, 64, 56, 56)
    ops = [
        OpFeatures("Concat", Kind.MOVE, 0, 0, parts, whole),
        OpFeatures("Transpose", Kind.MOVE, 0, 0, (whole,), whole),
    ]
    assert Work.of([GraphFeatures(tuple(ops), 0)], "float").work.tolist() == [0.0, pytest.approx(64 * 56 * 56 / 1e6)]


def test_parts_that_are_no_whole_granules_are_moved() -> None:
    parts, whole = ((1, 24, 56, 56), (1, 8, 56, 56)), (1, 32, 56, 56)
    rows = ((1, 6400, 85), (1, 1600, 85)), (1, 8000, 85)  # one after another, but not along the channels
    ops = [
        OpFeatures("Concat", Kind.MOVE, 0, 0, parts, whole), OpFeatures("Split", Kind.MOVE, 0, 0, (whole,), parts[0]),
        OpFeatures("Concat", Kind.MOVE, 0, 0, *rows),
    ]  # fmt: skip
    assert Work.of([GraphFeatures(tuple(ops), 0)], "float").work[[0, 2]].tolist() == [
        pytest.approx(32 * 56 * 56 / 1e6), 0.0,
    ]  # fmt: skip
    assert Work.of([GraphFeatures(tuple(ops), 0)], "float").work[1] >= 32 * 56 * 56 / 1e6


def test_a_slice_reads_what_it_writes() -> None:
    half = OpFeatures("Slice", Kind.MOVE, 0, 0, ((1, 64, 56, 56),), (1, 64, 28, 56))
    assert Work.of([GraphFeatures((half,), 0)], "float").work[0] == pytest.approx(64 * 28 * 56 / 1e6)


def test_the_last_of_five_dimensions_holds_the_channels() -> None:
    shape = (1, 3, 80, 80, 2)
    boxes = OpFeatures("Mul", Kind.ELEMENTWISE, 0, 0, (shape,), shape)
    assert Work.of([GraphFeatures((boxes,), 0)], "float").work[0] == pytest.approx(3 * 80 * 80 * 32 / 1e6)


def test_a_reduction_goes_through_what_it_reads() -> None:
    """Over the pixels of an image with channels last, which leaves one row: 56 rows are no 1 that stands for 32."""
    total = OpFeatures("ReduceL2", Kind.REDUCE, 0, 0, ((1, 56, 56, 128),), (1, 1, 1, 128))
    assert Work.of([GraphFeatures((total,), 0)], "float").work[0] == pytest.approx(56 * 56 * 128 / 1e6)


def test_a_linear_layers_rows_are_all_that_it_is_applied_to() -> None:
    """197 tokens fill 7 granules of 32 rows, whether the batch of one is written before or behind them."""
    works = []
    for shape in ((197, 1, 768), (1, 197, 768), (197, 768)):
        layer = OpFeatures("MatMul", Kind.LINEAR, 197 * 768 * 768, 768 * 768, (shape,), shape)
        works.append(float(Work.of([GraphFeatures((layer,), 0)], "float").work[0]))
    assert works == [pytest.approx(7 * 32 * 768 * 768 / 1e9)] * 3


@pytest.mark.parametrize(
    ("precision", "megabytes"), [("float", 4.098), ("w8a8", 2.049), ("w8a16", 2.049), ("w4a16", 1.0245)]
)
def test_weights_are_read_at_their_width(precision: str, megabytes: float) -> None:
    assert Work.of([GraphFeatures((HEAD,), 0)], precision).megabytes[0] == pytest.approx(megabytes)
