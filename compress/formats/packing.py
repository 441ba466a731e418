"""Small integers in 32-bit words: an unbroken stream of bits, the first integer in the lowest ones, or planes of bits."""

from math import gcd
from typing import Any

import numpy as np
from numpy.typing import NDArray

PER_BLOCK = 32  # integers of any width that fill whole words
PLANES = {3: (2, 1), 5: (4, 1), 6: (4, 2)}  # widths that do not divide words, in parts that do, the lowest bits first


def pack_words(integers: NDArray[np.uint8], bits: int) -> NDArray[np.int32]:
    """[N, K] of 0 … 2^bits − 1 → int32 [N, ⌈K·bits/32⌉]; integers of 3 bits reach over the ends of words.

    Args:
        integers: see above.
        bits: 1 to 8.
    """
    n, k = integers.shape
    if k % PER_BLOCK:
        integers = np.pad(integers, ((0, 0), (0, -k % PER_BLOCK)))
    grouped = integers.reshape(n, -1, 8 // gcd(bits, 8))
    packed = np.zeros((n, grouped.shape[1], bits // gcd(bits, 8)), np.uint8)
    for place in range(grouped.shape[2]):
        byte, shift = divmod(place * bits, 8)
        packed[..., byte] |= grouped[..., place] << np.uint8(shift)
        if shift + bits > 8:
            packed[..., byte + 1] |= grouped[..., place] >> np.uint8(8 - shift)
    words: NDArray[np.int32] = packed.reshape(n, -1).view("<i4")
    return words[:, : -(-k * bits // 32)]


def unpack_words(words: NDArray[Any], bits: int, columns: int) -> NDArray[np.uint8]:
    """The inverse of `pack_words`: int32 [N, ⌈columns·bits/32⌉] → uint8 [N, columns]."""
    if words.shape[1] % bits and 32 % bits:
        words = np.pad(words, ((0, 0), (0, -words.shape[1] % bits)))
    size, per_group = bits // gcd(bits, 8), 8 // gcd(bits, 8)
    packed = np.ascontiguousarray(words).view(np.uint8).reshape(len(words), -1, size)
    integers = np.empty((*packed.shape[:2], per_group), np.uint8)
    for place in range(per_group):
        byte, shift = divmod(place * bits, 8)
        value = packed[..., byte] >> np.uint8(shift)
        if shift + bits > 8:
            value |= packed[..., byte + 1] << np.uint8(8 - shift)
        np.bitwise_and(value, np.uint8(2**bits - 1), out=integers[..., place])
    return integers.reshape(len(words), -1)[:, :columns]


def pack_planes(integers: NDArray[np.uint8], bits: int) -> NDArray[np.int32]:
    """As `pack_words`, but of every 32 integers first the low bits of all, then the high ones (GPTQModel's ``gptq_p``).

    Args:
        integers: [N, K], 32 dividing K.
        bits: see `PLANES`; of other widths there is one plane.
    """
    parts, offset = [], 0
    for width in PLANES.get(bits, (bits,)):
        plane = (integers >> np.uint8(offset)) & np.uint8(2**width - 1)
        parts.append(pack_words(plane, width).reshape(len(integers), -1, width))
        offset += width
    return np.concatenate(parts, axis=2).reshape(len(integers), -1)


def unpack_planes(words: NDArray[Any], bits: int) -> NDArray[np.uint8]:
    """The inverse of `pack_planes`: int32 [N, K·bits/32] → uint8 [N, K]."""
    blocks = np.ascontiguousarray(words).reshape(len(words), -1, bits)
    columns, offset = blocks.shape[1] * PER_BLOCK, 0
    integers = np.zeros((len(words), columns), np.uint8)
    for width in PLANES.get(bits, (bits,)):
        plane = np.ascontiguousarray(blocks[..., offset : offset + width]).reshape(len(words), -1)
        integers |= unpack_words(plane, width, columns) << np.uint8(offset)
        offset += width
    return integers
