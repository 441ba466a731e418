import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pocketport.calibration.encodings import encoding_for_range
from pocketport.calibration.observers import OBSERVERS, Histogram, make_observer
from pocketport.calibration.observers.base import BINS
from pocketport.errors import InputError, UsageError

FLOATS = hnp.arrays(
    np.float32, st.integers(1, 200), elements=st.floats(-(2.0**40), 2.0**40, width=32, allow_subnormal=False)
)


def histogram(*batches: np.ndarray) -> Histogram:
    result = Histogram()
    for batch in batches:
        result.update(batch)
    return result


def same(first: Histogram, second: Histogram) -> bool:
    return (first.minimum, first.maximum, first.exponent, first.first) == (
        second.minimum, second.maximum, second.exponent, second.first,
    ) and np.array_equal(first.counts, second.counts)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(st.lists(FLOATS, min_size=1, max_size=4), st.randoms())
def test_order_of_updates_and_merges_does_not_matter(batches: list[np.ndarray], random: object) -> None:
    whole = histogram(np.concatenate(batches))
    assert same(whole, histogram(*batches))
    parts = [histogram(b) for b in batches]
    random.shuffle(parts)  # type: ignore[attr-defined]
    merged = Histogram()
    for part in parts:
        merged.merge(part)
    assert same(whole, merged)
    assert whole.total == sum(b.size for b in batches)
    assert len(whole.counts) <= BINS


@settings(max_examples=60, deadline=None)
@given(FLOATS)
def test_every_value_is_in_its_bin(values: np.ndarray) -> None:
    h = histogram(values)
    expected = np.zeros(len(h.counts), np.int64)
    for value in values.tolist():
        expected[math.floor(value / h.width) - h.first] += 1
    assert np.array_equal(h.counts, expected)


@pytest.mark.parametrize("shape", [(120, 384), (7, 11, 13), (64, 64)])
def test_drawn_values_are_spread_over_all_rows_and_columns(shape: tuple[int, ...]) -> None:
    columns = np.broadcast_to(np.arange(shape[-1], dtype=np.float32), shape).copy()
    columns[(0,) * len(shape)] = -5.0  # an extreme that no draw has to hit
    h = Histogram()
    h.update(columns, most=columns.size // 8)
    assert (h.minimum, h.maximum) == (-5.0, shape[-1] - 1)
    assert columns.size // 16 <= h.total <= columns.size // 8
    seen = np.array([h.counts[math.floor(v / h.width) - h.first] for v in range(shape[-1])])
    assert (seen > 0).all()
    assert seen.max() - seen.min() <= 2 + h.total // shape[-1] // 4


def test_growth_keeps_old_counts() -> None:
    h = histogram(np.full(10, 1e-3, np.float32), np.full(5, 1e3, np.float32), np.full(3, -1e3, np.float32))
    assert (h.total, h.minimum, h.maximum) == (18, -1000.0, 1000.0)
    assert sorted(h.counts[h.counts > 0].tolist()) == [3, 5, 10]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_errors(bad: float) -> None:
    with pytest.raises(InputError, match="NaN or infinite"):
        histogram(np.array([1.0, bad], np.float32))


def test_min_max_is_the_whole_range() -> None:
    h = histogram(np.array([-2.0, 0.5, 7.0], np.float32))
    assert make_observer("min_max").range(h, 256, False) == (-2.0, 7.0)


@pytest.mark.parametrize("percentile", [99.0, 99.9])
def test_percentile_is_that_of_numpy_within_a_bin(percentile: float) -> None:
    values = np.random.default_rng(0).standard_normal(50_000).astype(np.float32)
    h = histogram(*np.array_split(values, 7))
    low, high = make_observer("percentile", {"percentile": percentile}).range(h, 256, False)
    assert low == pytest.approx(np.percentile(values, 100 - percentile), abs=h.width)
    assert high == pytest.approx(np.percentile(values, percentile), abs=h.width)


def rounding_error(values: np.ndarray, low: float, high: float, dtype: str, symmetric: bool) -> float:
    encoding = encoding_for_range(low, high, dtype, symmetric=symmetric)
    return float(np.square(encoding.dequantize(encoding.quantize(values)) - values).mean())


@pytest.mark.parametrize(("dtype", "symmetric"), [("int8", True), ("uint8", False), ("int4", True), ("uint4", False)])
def test_mse_is_near_the_brute_force_optimum(dtype: str, symmetric: bool) -> None:
    rng = np.random.default_rng(1)
    values = rng.laplace(size=40_000).astype(np.float32)
    values = values if symmetric else np.abs(values)
    low, high = make_observer("mse").range(histogram(values), 16 if "4" in dtype else 256, symmetric)
    ours = rounding_error(values, low, high, dtype, symmetric)
    top = float(np.abs(values).max())
    tried = [
        rounding_error(values, -top * a if symmetric else 0.0, top * a, dtype, symmetric)
        for a in np.linspace(0.02, 1, 200)
    ]
    assert ours <= 1.05 * min(tried)
    assert ours < rounding_error(values, float(values.min()), float(values.max()), dtype, symmetric)


def test_mse_keeps_a_uniform_range_whole() -> None:
    values = np.linspace(-1, 1, 10_001, dtype=np.float32)
    low, high = make_observer("mse").range(histogram(values), 256, False)
    assert (low, high) == pytest.approx((-1.0, 1.0), abs=0.02)


def test_entropy_clips_a_lone_outlier_and_keeps_a_uniform_range() -> None:
    rng = np.random.default_rng(2)
    values = np.concatenate((rng.standard_normal(100_000), [60.0])).astype(np.float32)
    _, high = make_observer("entropy").range(histogram(values), 256, True)
    assert 2.0 < high < 30.0
    low, high = make_observer("entropy").range(histogram(np.linspace(-1, 1, 100_001, dtype=np.float32)), 256, True)
    assert (low, high) == pytest.approx((-1.0, 1.0), abs=0.05)


@pytest.mark.parametrize("name", sorted(OBSERVERS))
@pytest.mark.parametrize("values", [np.zeros(4), np.ones(3), np.full(3, -5.0), np.array([0.0, 1e-20])])
def test_degenerate_tensors_have_a_range(name: str, values: np.ndarray) -> None:
    h = histogram(values.astype(np.float32))
    for symmetric in (False, True):
        low, high = make_observer(name).range(h, 256, symmetric)
        assert math.isfinite(low) and math.isfinite(high) and low <= high
        encoding = encoding_for_range(low, high, "int8", symmetric=symmetric)
        restored = encoding.dequantize(encoding.quantize(values.astype(np.float32)))
        assert np.allclose(restored, values, atol=0.06 * max(1.0, float(np.abs(values).max())))


def test_wrong_names_and_options_are_explained() -> None:
    with pytest.raises(UsageError, match="did you mean percentile"):
        make_observer("percentil")
    with pytest.raises(UsageError, match="wrong options"):
        make_observer("min_max", {"percentile": 99.0})


def test_entropy_ends_on_few_values_around_zero() -> None:
    low, high = make_observer("entropy").range(histogram(np.array([-1.0, 2.0], np.float32)), 256, symmetric=False)
    assert (low, high) == (-1.0, 2.0)


def test_extremes_without_counts_merge_with_counts() -> None:
    counted, noted = Histogram(), Histogram()
    counted.update(np.array([0.5, 1.0, 2.0], np.float32))
    noted.widen(-3.0, 1.5)
    assert noted.seen and noted.total == 0
    counted.merge(noted)
    assert (counted.minimum, counted.maximum, counted.total) == (-3.0, 2.0, 3)
    noted.merge(counted)
    assert (noted.minimum, noted.maximum, noted.total) == (-3.0, 2.0, 3)
