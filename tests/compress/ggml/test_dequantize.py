"""Dequantization against the two owners of the formats: the ``gguf`` package and libggml itself."""

import ctypes
from importlib.resources import files

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from pocketport.compress.ggml.dequantize import CHUNK_BYTES, DEQUANTIZERS, dequantize
from pocketport.compress.ggml.types import TYPES, GgmlType
from pocketport.errors import InputError

IN_GGUF = sorted(DEQUANTIZERS.keys() - {"f64", "q8_k"})  # the package has no numbers for these
IN_LIBGGML = sorted(DEQUANTIZERS.keys() - {"f16", "bf16", "f32", "f64"})
LIBGGML = ctypes.CDLL(str(files("libggml") / "lib64" / "libggml-base.so"))


def bits(numbers: NDArray[np.float32]) -> NDArray[np.uint32]:
    """Bit patterns, every NaN alike."""
    flat = np.ascontiguousarray(numbers, np.float32).reshape(-1)
    return np.where(np.isnan(flat), np.uint32(0x7FC00000), flat.view(np.uint32))


def by_libggml(kind: GgmlType, data: NDArray[np.uint8]) -> NDArray[np.float32]:
    name = kind.name if kind.name.startswith(("iq", "tq", "mx")) or kind.name[-1] != "k" else kind.name[:-1] + "K"
    count = data.size // kind.size * kind.block
    result = np.empty(count, np.float32)
    function = getattr(LIBGGML, f"dequantize_row_{name}")
    function(data.ctypes.data_as(ctypes.c_void_p), result.ctypes.data_as(ctypes.c_void_p), ctypes.c_int64(count))
    return result


@pytest.mark.parametrize("name", IN_GGUF)
def test_bytes_of_any_value_are_what_the_gguf_package_reads(name: str) -> None:
    kind = TYPES[name]

    @settings(max_examples=30)
    @given(arrays(np.uint8, st.tuples(st.integers(1, 4), st.just(kind.size))))
    def check(data: NDArray[np.uint8]) -> None:
        with np.errstate(all="ignore"):
            expected = gguf.quants.dequantize(data, gguf.GGMLQuantizationType(kind.code))
            assert np.array_equal(bits(dequantize(kind, data, "test")), bits(expected))

    check()


@pytest.mark.parametrize("name", IN_LIBGGML)
def test_bytes_of_any_value_are_what_libggml_reads(name: str) -> None:
    kind = TYPES[name]
    data = np.random.default_rng(5).integers(0, 256, (400, kind.size), dtype=np.uint8)
    with np.errstate(all="ignore"):
        assert np.array_equal(bits(dequantize(kind, data, "test")), bits(by_libggml(kind, data)))


def test_types_are_those_of_the_format() -> None:
    LIBGGML.ggml_type_name.restype = ctypes.c_char_p
    LIBGGML.ggml_type_size.restype = ctypes.c_size_t
    LIBGGML.ggml_blck_size.restype = ctypes.c_int64
    for kind in TYPES.values():
        name = LIBGGML.ggml_type_name(kind.code).decode().lower()
        assert (name, LIBGGML.ggml_blck_size(kind.code), LIBGGML.ggml_type_size(kind.code)) == (
            kind.name, kind.block, kind.size,
        )  # fmt: skip


def test_more_than_a_chunk_of_blocks() -> None:
    kind = TYPES["q8_0"]
    data = np.random.default_rng(6).integers(0, 64, (CHUNK_BYTES // kind.size + 3, kind.size), dtype=np.uint8)
    expected = gguf.quants.dequantize(data, gguf.GGMLQuantizationType.Q8_0)
    assert np.array_equal(dequantize(kind, data, "test"), expected.reshape(-1))


def test_a_lattice_type_is_refused_by_name() -> None:
    with pytest.raises(InputError, match=r"model.gguf, tensor x: its type iq2_xxs can't be read"):
        dequantize(TYPES["iq2_xxs"], np.zeros(66, np.uint8), "model.gguf, tensor x")
