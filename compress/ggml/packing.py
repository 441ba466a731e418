"""Bit layouts of ggml's blocks (``ggml-common.h``): arrays of integers to bytes, one row of bytes per block."""

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
        raise InputError(
            "its weights are too large for scales in float16", where="ggml block format", fix="keep the tensor float"
        )
    return half.view(np.uint8).reshape(-1, 2)


def halves(q: Bytes, run: int) -> Bytes:
    """Nibbles [B, n]: in each stretch of 2·`run` the first half lies in the low, the second in the high nibbles."""
    split = q.reshape(len(q), -1, 2, run)
    return np.asarray(split[:, :, 0] | (split[:, :, 1] << 4), np.uint8).reshape(len(q), -1)


def fifth_bits(q: Bytes) -> Bytes:
    """Bit 4 of 32 integers [B, 32] as one little-endian 32-bit word, [B, 4]."""
    return np.packbits(q >> 4, axis=1, bitorder="little")


def fifth_bits_k(q: Bytes) -> Bytes:
    """Bit 4 of 256 integers [B, 256]: byte i holds those of i, i + 32, … i + 224 from its lowest bit on, [B, 32]."""
    return np.packbits((q >> 4).reshape(len(q), 8, 32), axis=1, bitorder="little").reshape(len(q), 32)


def six_bit_pairs(scales: Bytes, offsets: Bytes) -> Bytes:
    """Eight 6-bit scales and eight 6-bit offsets [B, 8] each → [B, 12], as ``get_scale_min_k4`` reads them."""
    low = np.concatenate([scales[:, :4] | (scales[:, 4:] >> 4 << 6), offsets[:, :4] | (offsets[:, 4:] >> 4 << 6)], 1)
    return np.concatenate([low, (scales[:, 4:] & 15) | (offsets[:, 4:] & 15) << 4], axis=1)


def q6_bits(q: Bytes) -> Bytes:
    """256 integers of 6 bits [B, 256] → 128 bytes of low halves, then 64 bytes of upper pairs, [B, 192]."""
    quarters = q.reshape(len(q), 2, 4, 32)
    low = quarters & 15
    lower = np.concatenate([low[:, :, 0] | low[:, :, 2] << 4, low[:, :, 1] | low[:, :, 3] << 4], axis=2)
    high = quarters >> 4
    upper = high[:, :, 0] | high[:, :, 1] << 2 | high[:, :, 2] << 4 | high[:, :, 3] << 6
    return np.concatenate([lower.reshape(len(q), 128), upper.reshape(len(q), 64)], axis=1)


def iq4_xs_scales(scales: Bytes) -> Bytes:
    """Eight 6-bit scales [B, 8] → the 16-bit word of their upper pairs, then four bytes of low halves, [B, 6]."""
    word = ((scales >> 4).astype(np.uint16) << (2 * np.arange(8, dtype=np.uint16))).sum(1, dtype=np.uint16)
    upper = word.astype("<u2").view(np.uint8).reshape(-1, 2)
    return np.concatenate([upper, (scales[:, 0::2] & 15) | (scales[:, 1::2] & 15) << 4], axis=1)
