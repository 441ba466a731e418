"""Bit fields of ggml's blocks (``ggml-common.h``): arrays of integers to bytes, one row of bytes per block."""

import numpy as np
from numpy.typing import NDArray

from pocketport.errors import InputError

Bytes = NDArray[np.uint8]


def half_bytes(values: NDArray[np.float32]) -> Bytes:
    """float32 [B] → the two bytes of each float16, [B, 2].

    Raises:
        InputError: a number is too large for float16.
    """
    with np.errstate(over="ignore"):
        half = values.astype("<f2")
    if not np.isfinite(half).all():
        raise too_large()
    return half.view(np.uint8).reshape(-1, 2)


def too_large() -> InputError:
    """The error for a scale that float16 can't hold."""
    return InputError(
        "its weights are too large for scales in float16", where="ggml block format", fix="keep the tensor float"
    )


def fields(q: Bytes, run: int, bits: int, count: int, *, above: int = 0) -> Bytes:
    """`bits` bits of integers [B, n], those above the lowest `above`, [B, n / count].

    Of each stretch of `count`·`run` integers the first `run` go to the lowest bits of as many bytes, the next `run` to the
    bits above these, and so on.
    """
    own = np.bitwise_and(np.right_shift(q, above, dtype=np.uint8), 2**bits - 1, dtype=np.uint8)
    shifts = (np.arange(count, dtype=np.uint8) * np.uint8(bits))[:, None]
    split = np.left_shift(own.reshape(len(q), -1, count, run), shifts, dtype=np.uint8)
    packed: Bytes = np.bitwise_or.reduce(split, axis=2)
    return packed.reshape(len(q), -1)


def halves(q: Bytes, run: int) -> Bytes:
    """`fields` of nibbles."""
    return fields(q, run, 4, 2)


def fifth_bits(q: Bytes) -> Bytes:
    """Bit 4 of 32 integers [B, 32] as one little-endian 32-bit word, [B, 4]."""
    return np.packbits(q >> 4, axis=1, bitorder="little")


def six_bit_pairs(scales: Bytes, offsets: Bytes) -> Bytes:
    """Eight 6-bit scales and eight 6-bit offsets [B, 8] each → [B, 12], as ``get_scale_min_k4`` reads them."""
    low = np.concatenate([scales[:, :4] | (scales[:, 4:] >> 4 << 6), offsets[:, :4] | (offsets[:, 4:] >> 4 << 6)], 1)
    return np.concatenate([low, (scales[:, 4:] & 15) | (offsets[:, 4:] & 15) << 4], axis=1)


def q3_k_scales(scales: Bytes) -> Bytes:
    """Sixteen 6-bit scales [B, 16] → eight bytes of low halves, then four bytes of upper pairs, [B, 12]."""
    return np.concatenate([halves(scales, 8), fields(scales, 4, 2, 4, above=4)], axis=1)


def iq4_xs_scales(scales: Bytes) -> Bytes:
    """Eight 6-bit scales [B, 8] → the 16-bit word of their upper pairs, then four bytes of low halves, [B, 6]."""
    word = ((scales >> 4).astype(np.uint16) << (2 * np.arange(8, dtype=np.uint16))).sum(1, dtype=np.uint16)
    upper = word.astype("<u2").view(np.uint8).reshape(-1, 2)
    return np.concatenate([upper, halves(scales, 1)], axis=1)
