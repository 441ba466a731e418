"""Small integers in 32-bit words."""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def pack_words(integers: NDArray[np.uint8], bits: int) -> NDArray[np.int32]:
    """[N, K] of 0 … 2^bits − 1 → int32 [N, ⌈K·bits/32⌉], the first of a word in its lowest bits.

    Args:
        integers: see above.
        bits: 2, 4 or 8.
    """
    per_byte, padding = 8 // bits, -integers.shape[1] % (32 // bits)
    if padding:
        integers = np.pad(integers, ((0, 0), (0, padding)))
    packed = integers[:, ::per_byte].copy()
    for place in range(1, per_byte):
        packed |= integers[:, place::per_byte] << np.uint8(place * bits)
    return packed.view("<i4")


def unpack_words(words: NDArray[Any], bits: int, columns: int) -> NDArray[np.uint8]:
    """The inverse of `pack_words`: int32 [N, ⌈columns·bits/32⌉] → uint8 [N, columns]."""
    packed, per_byte = np.ascontiguousarray(words).view(np.uint8), 8 // bits
    integers = np.empty((len(packed), packed.shape[1] * per_byte), np.uint8)
    for place in range(per_byte):
        integers[:, place::per_byte] = (packed >> np.uint8(place * bits)) & np.uint8(2**bits - 1)
    return integers[:, :columns]
