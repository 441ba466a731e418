from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pocketport.calibration.encodings import INTEGER_RANGES, Encoding, EncodingTable, encoding_for_range
from pocketport.errors import InputError

NARROW = [d for d in INTEGER_RANGES if d not in ("int32", "int3")]
BOUNDS = st.floats(-1e6, 1e6, allow_nan=False, width=32)


@settings(max_examples=200, deadline=None)
@given(BOUNDS, BOUNDS, st.sampled_from(NARROW), st.booleans())
def test_values_in_range_round_trip_within_half_a_step(a: float, b: float, dtype: str, symmetric: bool) -> None:
    low, high = min(a, b, 0.0), max(a, b, 0.0)
    encoding = encoding_for_range(a if a < b else b, max(a, b), dtype, symmetric=symmetric)
    values = np.linspace(low, high, 33).astype(np.float32)
    restored = encoding.dequantize(encoding.quantize(values))
    # An asymmetric zero point is itself rounded, which moves each bound by up to half a step.
    step = float(encoding.scale)
    slack = step * (1.001 if not symmetric else 0.501) + 1e-6 * max(-low, high)
    inside = (values >= (encoding.bounds[0] - int(encoding.zero_point)) * step) & (
        values <= (encoding.bounds[1] - int(encoding.zero_point)) * step
    )
    assert np.all(np.abs(restored - values)[inside] <= step / 2 + 1e-6 * max(-low, high, 1e-30))
    assert np.all(np.abs(restored - values) <= slack)


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("symmetric", [False, True])
def test_zero_is_exact(dtype: str, symmetric: bool) -> None:
    encoding = encoding_for_range(0.3, 7.0, dtype, symmetric=symmetric)
    assert encoding.dequantize(encoding.quantize(np.zeros(1, np.float32)))[0] == 0.0


def test_rounding_is_half_to_even_and_saturates() -> None:
    encoding = Encoding("int8", np.float32(1.0).reshape(()), np.int32(0).reshape(()))
    values = np.array([0.5, 1.5, -0.5, -2.5, 300.0, -300.0], np.float32)
    assert encoding.quantize(values).tolist() == [0, 2, 0, -2, 127, -128]


def test_blocks_and_channels_have_their_own_scales() -> None:
    scale = np.array([[1.0, 2.0], [4.0, 8.0]], np.float32)
    blocked = Encoding("int4", scale, np.zeros((2, 2), np.int32), axis=1, block=2)
    ones = np.ones((2, 4), np.int32)
    assert blocked.dequantize(ones).tolist() == [[1, 1, 2, 2], [4, 4, 8, 8]]
    channel = Encoding("int8", scale[0], np.array([0, 1], np.int32), axis=1)
    assert channel.dequantize(np.full((2, 2), 3)).tolist() == [[3, 4], [3, 4]]


def test_table_round_trips_with_the_same_bytes(tmp_path: Path) -> None:
    table = EncodingTable({
        "a/b|c": encoding_for_range(-1, 2, "uint16", symmetric=False),
        "w": Encoding("int4", np.ones((2, 2), np.float32), np.zeros((2, 2), np.int32), axis=1, block=2),
    })  # fmt: skip
    table.save(tmp_path / "one.npz")
    loaded = EncodingTable.load(tmp_path / "one.npz")
    loaded.save(tmp_path / "two.npz")
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()
    assert set(loaded) == set(table) and loaded["w"].block == 2 and loaded["a/b|c"].axis is None
    (tmp_path / "bad.npz").write_bytes(b"no")
    with pytest.raises(InputError):
        EncodingTable.load(tmp_path / "bad.npz")


@settings(max_examples=300, deadline=None)
@example(-122326.0, 20422.0, "int2")  # the greater end lies by half a step of a scale that is made for the other alone
@given(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6), st.sampled_from(["int2", "uint8", "int8", "uint4", "uint16"]))
def test_both_ends_are_reached_and_one_is_exact(first: float, second: float, dtype: str) -> None:
    low, high = min(first, second, 0.0), max(first, second, 0.0)
    encoding = encoding_for_range(low, high, dtype, symmetric=False)
    least, most = (float(encoding.dequantize(np.array(n))) for n in encoding.bounds)
    slack = 1e-6 * (high - low) + 1e-30
    half = 0.5 * float(encoding.scale) + slack
    assert least <= low + slack or (least == 0 and -low <= half)
    assert most >= high - slack or (most == 0 and high <= half)
    if high - low > 1e-20:
        beside = half - (high if most == 0 else -low if least == 0 else 0)  # 0 where that end decides the scale
        assert min(abs(least - low), abs(most - high), abs(beside - slack)) <= slack
