from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from pocketport.compress.quantized_weights import (
    PackedWeight,
    QuantizedWeight,
    QuantizedWeights,
    pack_nibbles,
    unpack_nibbles,
    write_index,
    write_part,
)
from pocketport.errors import InputError


def random_weight(rows: int, columns: int, block: int, bits: int, seed: int = 0) -> QuantizedWeight:
    rng = np.random.default_rng(seed)
    groups = (rows, columns // block)
    return QuantizedWeight(
        bits=bits,
        block=block,
        symmetric=False,
        integers=rng.integers(0, 2**bits, (rows, columns)).astype(np.uint8),
        scale=rng.random(groups).astype(np.float32),
        zero_point=rng.integers(0, 2**bits, groups).astype(np.uint8),
    )


def by_definition(weight: QuantizedWeight) -> NDArray[np.float64]:
    _, k = weight.shape
    group = np.arange(k) // weight.block if weight.group_index is None else weight.group_index
    zero = weight.zero_point.astype(np.int64)[:, group]
    return (weight.integers.astype(np.int64) - zero) * weight.scale.astype(np.float64)[:, group]


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_dequantizing_follows_the_definition(bits: int) -> None:
    weight = random_weight(6, 64, 16, bits)
    np.testing.assert_allclose(weight.dequantized(), by_definition(weight), rtol=1e-6)
    order = np.random.default_rng(1).permutation(np.arange(64) // 16).astype(np.int32)
    scattered = QuantizedWeight(bits, 16, False, weight.integers, weight.scale, weight.zero_point, order)
    np.testing.assert_allclose(scattered.dequantized(), by_definition(scattered), rtol=1e-6)


@given(st.integers(1, 5), st.integers(1, 33), st.integers(0, 2**32 - 1))
def test_nibbles_come_back(rows: int, columns: int, seed: int) -> None:
    integers = np.random.default_rng(seed).integers(0, 16, (rows, columns)).astype(np.uint8)
    packed = pack_nibbles(integers)
    assert packed.shape == (rows, (columns + 1) // 2)
    np.testing.assert_array_equal(unpack_nibbles(packed, columns), integers)


def test_a_directory_gives_back_what_was_written(tmp_path: Path) -> None:
    four, eight = random_weight(5, 32, 8, 4), random_weight(3, 32, 32, 8, seed=2)
    packed = PackedWeight("q8_0", (2, 32), np.arange(68, dtype=np.uint8))
    entries = write_part(tmp_path / "part-0.safetensors", {"four": four, "packed": packed})
    entries |= write_part(tmp_path / "part-1.safetensors", {"eight": eight})
    write_index(tmp_path, entries)
    weights = QuantizedWeights(tmp_path)
    assert sorted(weights) == ["eight", "four", "packed"]
    for name, expected in (("four", four), ("eight", eight)):
        found = weights[name]
        assert isinstance(found, QuantizedWeight)
        for field in ("integers", "scale", "zero_point"):
            np.testing.assert_array_equal(getattr(found, field), getattr(expected, field))
        assert (found.bits, found.block, found.symmetric) == (expected.bits, expected.block, expected.symmetric)
    found = weights["packed"]
    assert isinstance(found, PackedWeight)
    assert (found.type, found.shape, found.data.tolist()) == ("q8_0", (2, 32), list(range(68)))


def test_the_same_weights_give_the_same_bytes(tmp_path: Path) -> None:
    weights = {"b": random_weight(5, 32, 8, 4), "a": random_weight(4, 16, 16, 3)}
    write_part(tmp_path / "one", weights)
    write_part(tmp_path / "two", dict(reversed(weights.items())))
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_a_directory_without_an_index_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"index\.json"):
        QuantizedWeights(tmp_path)
