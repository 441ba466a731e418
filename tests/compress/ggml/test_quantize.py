"""Our block quantizers against the format owner's: bit layouts, and errors with the same importance."""

import numpy as np
import pytest
from ggml_library import dequantized, dequantized_by_gguf, quantized
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pocketport.compress.ggml.blocks import FORMS
from pocketport.compress.ggml.quantize import quantize
from pocketport.compress.ggml.types import TYPES
from pocketport.errors import UsageError

ROWS, COLUMNS = 64, 1024
WORSE = 1.02  # than llama.cpp's with importance, whose search starts elsewhere
KINDS = list(FORMS)


def heavy_tailed(seed: int) -> NDArray[np.float32]:
    """Trained weights' like: long tails, input channels of unequal size."""
    random = np.random.default_rng(seed)
    spread = np.exp(0.5 * random.standard_normal(COLUMNS))
    return (0.02 * random.standard_t(4, (ROWS, COLUMNS)) * spread).astype(np.float32)


def importance(seed: int) -> NDArray[np.float32]:
    return np.exp(np.random.default_rng(seed).standard_normal(COLUMNS)).astype(np.float32)


def error(matrix: NDArray[np.float32], read: NDArray[np.float32], heed: NDArray[np.float32] | None) -> float:
    weights = np.ones(COLUMNS) if heed is None else heed
    return float((weights * (matrix.astype(np.float64) - read) ** 2).sum())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", [None, 1])
def test_error_is_not_above_llama_cpps(kind: str, seed: int | None) -> None:
    matrix, heed = heavy_tailed(0), None if seed is None else importance(seed)
    ours = dequantized(kind, quantize(kind, matrix, heed), COLUMNS)
    theirs = dequantized(kind, quantized(kind, matrix, heed), COLUMNS)
    allowed = error(matrix, theirs, heed) * (1.0 if heed is None else WORSE)
    assert error(matrix, ours, heed) <= allowed


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"q8_0"}))
def test_importance_moves_the_error_to_where_it_counts_less(kind: str) -> None:
    matrix, heed = heavy_tailed(0), importance(1) ** 2
    blind = dequantized(kind, quantize(kind, matrix, None), COLUMNS)
    seeing = dequantized(kind, quantize(kind, matrix, heed), COLUMNS)
    assert error(matrix, seeing, heed) < 0.97 * error(matrix, blind, heed)


def test_q8_0_gives_llama_cpps_bytes() -> None:
    """But for quotients that are exactly a half, which C rounds away from zero."""
    matrix = heavy_tailed(3)
    ours, theirs = (f("q8_0", matrix, None).reshape(-1, 34) for f in (quantize, quantized))
    np.testing.assert_array_equal(ours[:, :2], theirs[:, :2])
    difference = ours[:, 2:].view(np.int8).astype(int) - theirs[:, 2:].view(np.int8)
    assert np.abs(difference).max() <= 1 and np.count_nonzero(difference) < 10


@settings(max_examples=50, deadline=None)
@given(
    st.sampled_from(KINDS), st.integers(1, 5), st.integers(1, 3), st.integers(0, 2**32 - 1),
    st.floats(1e-2, 1e3), st.sampled_from(["plain", "zero rows", "one outlier", "all equal", "one sign"]), st.booleans(),
)  # fmt: skip
def test_both_of_the_owners_readers_agree_on_our_bytes(
    kind: str, rows: int, blocks: int, seed: int, size: float, shape: str, weighed: bool
) -> None:
    """And what they read is within half a step of the coarsest grid of the block, however the weights lie."""
    columns = 256 * blocks
    random = np.random.default_rng(seed)
    matrix = (size * random.standard_normal((rows, columns))).astype(np.float32)
    if shape == "zero rows":
        matrix[::2] = 0
    elif shape == "one outlier":
        matrix[0, 7] *= 50
    elif shape == "all equal":
        matrix[:] = matrix[0, 0]
    elif shape == "one sign":
        matrix = np.abs(matrix)
    heed = random.uniform(0, 2, columns).astype(np.float32) if weighed else None
    data = quantize(kind, matrix, heed)
    assert data.shape == (rows, TYPES[kind].row_bytes(columns))
    read = dequantized(kind, data, columns)
    np.testing.assert_array_equal(read, dequantized_by_gguf(kind, data))
    greatest = np.abs(matrix).reshape(rows, -1, TYPES[kind].block).max(-1, keepdims=True)
    off = np.abs(matrix - read).reshape(rows, -1, TYPES[kind].block)
    assert np.all(off <= (0.6 if kind == "q2_k" else 0.3) * greatest + 1e-7)  # of q2_k's four levels two are extremes
    if shape == "zero rows":
        assert not read[::2].any()


def test_what_can_not_be_packed_is_refused() -> None:
    with pytest.raises(UsageError, match="blocks of 256"):
        quantize("q4_k", np.zeros((1, 288), np.float32), None)
    with pytest.raises(UsageError, match="can't be written"):
        quantize("iq1_s", np.zeros((1, 256), np.float32), None)
