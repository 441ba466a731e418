"""Weights that stay integers, in the layout that both Apple formats want: one scale per block of any shape."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class CompressedWeight:
    """real = (integers - zero_point) * scale, each scale covering a block.

    Attributes:
        integers: the weight's shape, one integer an element (int8 or uint8, also for 4 bits and less).
        dtype: ``int8``, ``uint8``, ``int4`` or ``uint4``: what is stored.
        scale: float32, the weight's rank; every dimension divides the weight's.
        zero_point: the shape of `scale`, the type of `integers`.
    """

    integers: NDArray[np.generic]
    dtype: str
    scale: NDArray[np.float32]
    zero_point: NDArray[np.generic]

    @property
    def bits(self) -> int:
        """Bits of one stored weight."""
        return int(self.dtype.removeprefix("u").removeprefix("int"))

    @property
    def signed(self) -> bool:
        """Whether the stored integers are signed."""
        return not self.dtype.startswith("u")

    def transposed(self, permutation: tuple[int, ...]) -> "CompressedWeight":
        """The same weight with its dimensions permuted, still compressed."""
        parts = (np.ascontiguousarray(a.transpose(permutation)) for a in (self.integers, self.scale, self.zero_point))
        integers, scale, zero_point = parts
        return CompressedWeight(integers, self.dtype, scale, zero_point)

    def dense(self) -> NDArray[np.float32]:
        """The real weights, float32."""
        scale, zero_point = self.scale, self.zero_point.astype(np.int32)
        for axis, size in enumerate(self.integers.shape):
            repeats = size // scale.shape[axis]
            scale, zero_point = np.repeat(scale, repeats, axis), np.repeat(zero_point, repeats, axis)
        return ((self.integers.astype(np.int32) - zero_point) * scale).astype(np.float32)


def compress(
    integers: NDArray[np.generic], dtype: str, scale: NDArray[np.float32], zero_point: NDArray[np.generic] | None,
    axis: int, block: int,
) -> CompressedWeight:  # fmt: skip
    """From DequantizeLinear's operands: scalar, per-channel ([C] along `axis`) or blocked (`block` along `axis`) scales."""
    storage = np.int8 if dtype.startswith("int") else np.uint8
    if scale.ndim == 0 or (scale.size == 1 and not block):
        shape: tuple[int, ...] = (1,) * integers.ndim
    elif scale.ndim == 1 and not block:
        shape = tuple(-1 if d == axis % integers.ndim else 1 for d in range(integers.ndim))
    else:
        shape = scale.shape
    scales = scale.astype(np.float32).reshape(shape)
    zeros = np.zeros(scales.shape, storage) if zero_point is None else zero_point.astype(storage).reshape(scales.shape)
    return CompressedWeight(integers.astype(storage), dtype, scales, zeros)


def pack(integers: NDArray[np.generic], bits: int) -> NDArray[np.uint8]:
    """Integers below a byte, the first in the lowest bits, rows after rows, padded to whole bytes."""
    fields = integers.astype(np.int64).ravel().astype(np.uint8) & ((1 << bits) - 1)
    per_byte = 8 // bits
    fields = np.concatenate([fields, np.zeros(-len(fields) % per_byte, np.uint8)]).reshape(-1, per_byte)
    shifts = np.arange(per_byte, dtype=np.uint8) * np.uint8(bits)
    packed: NDArray[np.uint8] = np.bitwise_or.reduce(fields << shifts, axis=1).astype(np.uint8)
    return packed
