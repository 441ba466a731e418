"""Weights that stay integers, in the layouts that both Apple formats want: a scale, or a table, per block of any shape."""

import math
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from pocketport.calibration.encodings import Palette


@dataclass(frozen=True)
class AffineWeight:
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

    def transposed(self, permutation: tuple[int, ...]) -> "AffineWeight":
        """The same weight with its dimensions permuted, still compressed."""
        parts = (np.ascontiguousarray(a.transpose(permutation)) for a in (self.integers, self.scale, self.zero_point))
        integers, scale, zero_point = parts
        return AffineWeight(integers, self.dtype, scale, zero_point)

    def dense(self) -> NDArray[np.float32]:
        """The real weights, float32."""
        scale, zero_point = self.scale, self.zero_point.astype(np.int32)
        for axis, size in enumerate(self.integers.shape):
            repeats = size // scale.shape[axis]
            scale, zero_point = np.repeat(scale, repeats, axis), np.repeat(zero_point, repeats, axis)
        return ((self.integers.astype(np.int32) - zero_point) * scale).astype(np.float32)


@dataclass(frozen=True)
class PalettizedWeight:
    """real = table[index], each table for a block.

    Attributes:
        indices: uint8, the weight's shape.
        table: float32, of the weight's rank and two dimensions more: the blocks, which divide the weight's dimensions, the
            2^bits numbers, and 1.
    """

    indices: NDArray[np.uint8]
    table: NDArray[np.float32]

    @property
    def bits(self) -> int:
        """Of an index."""
        return int(math.log2(self.table.shape[-2]))

    @property
    def dtype(self) -> str:
        """Of the indices as they are stored: ``uint1`` to ``uint8``."""
        return f"uint{self.bits}"

    def transposed(self, permutation: tuple[int, ...]) -> "PalettizedWeight":
        """The same weight with its dimensions permuted, still compressed."""
        rank = len(permutation)
        indices = np.ascontiguousarray(self.indices.transpose(permutation))
        return PalettizedWeight(indices, np.ascontiguousarray(self.table.transpose((*permutation, rank, rank + 1))))

    def dense(self) -> NDArray[np.float32]:
        """The real weights, float32."""
        axis = int(np.argmax(self.table.shape[:-2]))
        return Palette(self.table.reshape(-1, self.table.shape[-2]), axis).dequantize(self.indices)


CompressedWeight: TypeAlias = AffineWeight | PalettizedWeight


def compress(
    integers: NDArray[np.generic], dtype: str, scale: NDArray[np.float32], zero_point: NDArray[np.generic] | None,
    axis: int, block: int,
) -> AffineWeight:  # fmt: skip
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
    return AffineWeight(integers.astype(storage), dtype, scales, zeros)


def palettize(indices: NDArray[np.generic], palette: Palette) -> PalettizedWeight:
    """From a pivot's indices and tables."""
    groups, levels = palette.table.shape
    blocks = [groups if axis == palette.axis else 1 for axis in range(indices.ndim)]
    return PalettizedWeight(indices.astype(np.uint8), palette.table.reshape(*blocks, levels, 1))


def pack(integers: NDArray[np.generic], bits: int) -> NDArray[np.uint8]:
    """Integers below a byte as one stream of bits, the first in the lowest, rows after rows, padded to whole bytes."""
    fields = integers.astype(np.int64).ravel() & ((1 << bits) - 1)
    eights = np.concatenate([fields, np.zeros(-len(fields) % 8, np.int64)]).reshape(-1, 8)  # in as many bytes as bits
    words = np.bitwise_or.reduce(eights << (bits * np.arange(8)), axis=1)
    stream = words.astype("<i8").view(np.uint8).reshape(-1, 8)[:, :bits]
    return np.ascontiguousarray(stream).ravel()[: math.ceil(len(fields) * bits / 8)]
