"""ggml's block formats back to numbers: exactly what ``ggml-quants.c`` computes, in numpy.

Layouts are those of ``ggml-common.h``. Products and sums are float32 in ggml's order, so that results are bit-equal.
"""

from collections.abc import Callable, Mapping
from functools import partial

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from pocketport.compress.ggml.types import GgmlType
from pocketport.errors import InputError

CHUNK_BYTES = 1 << 22  # of blocks at a time: what intermediate arrays take stays small
IQ4_LEVELS = np.array(
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32
)  # fmt: skip
E2M1_LEVELS = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.float32)
"""Twice the numbers of the OCP microscaling format's 4-bit floats; the scale is half its own."""

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]


def dequantize(kind: GgmlType, data: Bytes, where: str) -> Floats:
    """Numbers of a tensor's bytes.

    Args:
        kind: the blocks' type, one of `DEQUANTIZERS`.
        data: uint8, any shape, whole blocks.
        where: file and tensor, for the error.

    Returns:
        float32 [blocks · weights of a block].

    Raises:
        InputError: the type can't be read.
    """
    if kind.name not in DEQUANTIZERS:
        raise unreadable(kind, where)
    change = DEQUANTIZERS[kind.name]
    blocks = data.reshape(-1, kind.size)
    result = np.empty((len(blocks), kind.block), np.float32)
    step = max(1, CHUNK_BYTES // kind.size)
    for start in range(0, len(blocks), step):
        chunk = np.ascontiguousarray(blocks[start : start + step])
        result[start : start + step] = change(chunk).reshape(len(chunk), kind.block)
    return result.reshape(-1)


def unreadable(kind: GgmlType, where: str) -> InputError:
    """The error for a type that has no dequantizer here."""
    return InputError(
        f"its type {kind.name} can't be read",
        where=where,
        fix=f"convert the original checkpoint to one of {', '.join(DEQUANTIZERS)}",
    )


def nibbles(data: Bytes, run: int) -> Bytes:
    """[B, n] → [B, 2n] integers of 4 bits: of each `run` bytes first the low halves, then the high ones."""
    return _fields(data, run, 4, 2)


def _fields(data: Bytes, run: int, bits: int, count: int) -> Bytes:
    """[B, n] → [B, count·n]: of each `run` bytes the lowest `bits` bits of all, then the next ones, `count` times."""
    shifts = (np.arange(count, dtype=np.uint8) * np.uint8(bits))[:, None]
    fields = (data.reshape(len(data), -1, 1, run) >> shifts) & np.uint8(2**bits - 1)
    return fields.reshape(len(data), -1)


def half(data: Bytes) -> Floats:
    """The float16 of two bytes [B, 2] → float32 [B, 1]."""
    return np.ascontiguousarray(data).view("<f2").astype(np.float32)


def _signed_bytes(data: Bytes) -> Floats:
    return np.ascontiguousarray(data).view(np.int8).astype(np.float32)


def fifth_bit(low: Bytes, bits: Bytes) -> Bytes:
    """Integers of 5 bits [B, 32] from their low halves and a little-endian word [B, 4] of the fifth bits."""
    return low | np.left_shift(np.unpackbits(bits, axis=1, bitorder="little"), 4, dtype=np.uint8)


def six_bit_pairs(packed: Bytes) -> tuple[Floats, Floats]:
    """Eight 6-bit scales and eight 6-bit offsets of 12 bytes [B, 12] (``get_scale_min_k4``) → float32 [B, 8, 1] each."""
    first, second, last = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = np.concatenate([first & 63, (last & 15) | (first >> 6 << 4)], axis=1)
    offsets = np.concatenate([second & 63, (last >> 4) | (second >> 6 << 4)], axis=1)
    return scales.astype(np.float32)[..., None], offsets.astype(np.float32)[..., None]


def _plain(b: Bytes, dtype: str) -> Floats:
    return b.view(ml_dtypes.bfloat16 if dtype == "bf16" else dtype).astype(np.float32)


def _q4_0(b: Bytes) -> Floats:
    return half(b[:, :2]) * (nibbles(b[:, 2:], 16).astype(np.float32) - 8)


def _q4_1(b: Bytes) -> Floats:
    return half(b[:, :2]) * nibbles(b[:, 4:], 16).astype(np.float32) + half(b[:, 2:4])


def _q5_0(b: Bytes) -> Floats:
    return half(b[:, :2]) * (fifth_bit(nibbles(b[:, 6:], 16), b[:, 2:6]).astype(np.float32) - 16)


def _q5_1(b: Bytes) -> Floats:
    return half(b[:, :2]) * fifth_bit(nibbles(b[:, 8:], 16), b[:, 4:8]).astype(np.float32) + half(b[:, 2:4])


def _q8_0(b: Bytes) -> Floats:
    return half(b[:, :2]) * _signed_bytes(b[:, 2:])


def _q2_k(b: Bytes) -> Floats:
    packed, q = b[:, :16], _fields(b[:, 16:80], 32, 2, 4).reshape(-1, 16, 16).astype(np.float32)
    scale = half(b[:, 80:82]) * (packed & 15).astype(np.float32)
    offset = half(b[:, 82:84]) * (packed >> 4).astype(np.float32)
    return scale[..., None] * q - offset[..., None]


def _q3_k(b: Bytes) -> Floats:
    low = _fields(b[:, 32:96], 32, 2, 4)
    high = _fields(b[:, :32], 32, 1, 8)  # set where nothing is taken away
    q = low.astype(np.float32) - 4 * (1 - high.astype(np.float32))
    six = nibbles(b[:, 96:104], 8) | (_fields(b[:, 104:108], 4, 2, 4) << 4)
    scale = half(b[:, 108:110]) * (six.astype(np.float32) - 32)
    return scale[..., None] * q.reshape(-1, 16, 16)


def _affine_super(b: Bytes, q: Bytes) -> Floats:
    """Super-blocks that begin with two float16 and eight pairs of 6-bit scales and offsets; q [B, 256]."""
    scales, offsets = six_bit_pairs(b[:, 4:16])
    scale, offset = half(b[:, :2])[..., None] * scales, half(b[:, 2:4])[..., None] * offsets
    return scale * q.reshape(-1, 8, 32).astype(np.float32) - offset


def _q4_k(b: Bytes) -> Floats:
    return _affine_super(b, nibbles(b[:, 16:], 32))


def _q5_k(b: Bytes) -> Floats:
    return _affine_super(b, nibbles(b[:, 48:], 32) | np.left_shift(_fields(b[:, 16:48], 32, 1, 8), 4, dtype=np.uint8))


def _q6_k(b: Bytes) -> Floats:
    q = nibbles(b[:, :128], 64) | (_fields(b[:, 128:192], 32, 2, 4) << 4)
    scale = half(b[:, 208:210]) * _signed_bytes(b[:, 192:208])
    return scale[..., None] * (q.astype(np.float32) - 32).reshape(-1, 16, 16)


def _q8_k(b: Bytes) -> Floats:
    return np.ascontiguousarray(b[:, :4]).view("<f4") * _signed_bytes(b[:, 4:260])


def _iq4_nl(b: Bytes) -> Floats:
    return half(b[:, :2]) * IQ4_LEVELS[nibbles(b[:, 2:], 16)]


def _iq4_xs(b: Bytes) -> Floats:
    low = _fields(b[:, 4:8], 1, 4, 2)
    high = _fields(b[:, 2:4], 1, 2, 4)
    scale = half(b[:, :2]) * ((low | (high << 4)).astype(np.float32) - 32)
    return scale[..., None] * IQ4_LEVELS[nibbles(b[:, 8:], 16)].reshape(-1, 8, 32)


def _tq1_0(b: Bytes) -> Floats:
    """Five base-3 digits to a byte, as fractions of 256; the last four bytes have four."""
    digits = [_digits(b[:, :32], 5), _digits(b[:, 32:48], 5), _digits(b[:, 48:52], 4)]
    return half(b[:, 52:54]) * (np.concatenate(digits, axis=1).astype(np.float32) - 1)


def _digits(data: Bytes, count: int) -> Bytes:
    powers = np.array([1, 3, 9, 27, 81], np.uint8)[:count, None]
    shifted = data[:, None, :] * powers  # modulo 256: the digits before are gone
    return (shifted.astype(np.uint16) * 3 >> 8).astype(np.uint8).reshape(len(data), -1)


def _tq2_0(b: Bytes) -> Floats:
    return half(b[:, 64:66]) * (_fields(b[:, :64], 32, 2, 4).astype(np.float32) - 1)


def _mxfp4(b: Bytes) -> Floats:
    exponent = b[:, :1].astype(np.uint32)
    # Half of 2^(e − 127), as bits; the two smallest are subnormal.
    bits = np.where(exponent < 2, np.uint32(0x00200000) << exponent, (exponent - 1) << 23).astype(np.uint32)
    return bits.view(np.float32) * E2M1_LEVELS[nibbles(b[:, 1:], 16)]


DEQUANTIZERS: Mapping[str, Callable[[Bytes], Floats]] = {
    "f32": partial(_plain, dtype="<f4"), "f16": partial(_plain, dtype="<f2"), "bf16": partial(_plain, dtype="bf16"),
    "f64": partial(_plain, dtype="<f8"), "q4_0": _q4_0, "q4_1": _q4_1, "q5_0": _q5_0, "q5_1": _q5_1, "q8_0": _q8_0,
    "q2_k": _q2_k, "q3_k": _q3_k, "q4_k": _q4_k, "q5_k": _q5_k, "q6_k": _q6_k, "q8_k": _q8_k,
    "iq4_nl": _iq4_nl, "iq4_xs": _iq4_xs, "tq1_0": _tq1_0, "tq2_0": _tq2_0, "mxfp4": _mxfp4,
}  # fmt: skip
"""Type → numbers of blocks uint8 [B, bytes of a block], float32 of B · block elements in order."""

SCALES: Mapping[str, tuple[str, tuple[int, ...]]] = {
    "q4_0": ("<f2", (0,)), "q4_1": ("<f2", (0, 2)), "q5_0": ("<f2", (0,)), "q5_1": ("<f2", (0, 2)),
    "q8_0": ("<f2", (0,)), "q2_k": ("<f2", (80, 82)), "q3_k": ("<f2", (108,)), "q4_k": ("<f2", (0, 2)),
    "q5_k": ("<f2", (0, 2)), "q6_k": ("<f2", (208,)), "q8_k": ("<f4", (0,)), "iq4_nl": ("<f2", (0,)),
    "iq4_xs": ("<f2", (0,)), "tq1_0": ("<f2", (52,)), "tq2_0": ("<f2", (64,)),
}  # fmt: skip
"""Type → dtype and places of the floats in a block: what can be NaN or infinite."""
