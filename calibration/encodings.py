"""Encodings: how one tensor's real numbers are written as integers (scale, zero point, dtype, axis, block)."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from pocketport.errors import InputError

T = TypeVar("T", bound=np.generic)

INTEGER_RANGES: Mapping[str, tuple[int, int]] = {
    "int2": (-2, 1), "uint2": (0, 3), "int3": (-4, 3), "int4": (-8, 7), "uint4": (0, 15), "int8": (-128, 127), "uint8": (0, 255),
    "int16": (-32768, 32767), "uint16": (0, 65535), "int32": (-(2**31), 2**31 - 1),
}  # fmt: skip


@dataclass(frozen=True)
class Encoding:
    """real = (integer - zero_point) * scale.

    Attributes:
        dtype: integer type's name, a key of INTEGER_RANGES.
        scale: float32; shape () per tensor, [C] per channel along `axis`, or the tensor's shape with
            `axis` divided by `block` for blocks.
        zero_point: int32, the shape of `scale`.
        axis: quantized dimension (per channel: the channel; per block: the dimension cut in blocks), None per tensor.
        block: elements along `axis` that share a scale, 0 if not blocked.
    """

    dtype: str
    scale: NDArray[np.float32]
    zero_point: NDArray[np.int32]
    axis: int | None = None
    block: int = 0

    @property
    def bounds(self) -> tuple[int, int]:
        """Least and greatest integer of the dtype."""
        return INTEGER_RANGES[self.dtype]

    def _expand(self, values: NDArray[T], shape: tuple[int, ...]) -> NDArray[T]:
        if self.axis is None:
            return values
        if self.block:
            spread = np.repeat(values, self.block, axis=self.axis)
            return spread.take(np.arange(shape[self.axis]), axis=self.axis)
        return values.reshape([-1 if d == self.axis else 1 for d in range(len(shape))])

    def expanded(self, shape: tuple[int, ...]) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        """Scale and zero point of every element of a tensor of this shape."""
        scale, zero_point = (self._expand(v, shape) for v in (self.scale, self.zero_point))
        return np.broadcast_to(scale, shape), np.broadcast_to(zero_point, shape)

    def quantize(self, real: NDArray[np.floating]) -> NDArray[np.int32]:
        """Round half to even and saturate, as ONNX QuantizeLinear does; int32 integers of `real`'s shape."""
        low, high = self.bounds
        scaled = np.rint(real / self._expand(self.scale, real.shape)) + self._expand(self.zero_point, real.shape)
        integers: NDArray[np.int32] = np.clip(scaled, low, high).astype(np.int32)
        return integers

    def dequantize(self, integers: NDArray[np.integer]) -> NDArray[np.float32]:
        """The real numbers that `integers` stand for, float32."""
        centred = integers.astype(np.int32) - self._expand(self.zero_point, integers.shape)
        real: NDArray[np.float32] = (centred * self._expand(self.scale, integers.shape)).astype(np.float32)
        return real


@dataclass(frozen=True)
class Palette:
    """real = table[index]: weights as indices into look-up tables.

    Attributes:
        table: float32 of float16's numbers, [groups, 2^bits], ascending in every group.
        axis: dimension of the channels, which are cut in as many runs of one length as there are groups.
    """

    table: NDArray[np.float32]
    axis: int

    @property
    def bounds(self) -> tuple[int, int]:
        """Least and greatest index."""
        return 0, self.table.shape[1] - 1

    def offsets(self, shape: tuple[int, ...]) -> NDArray[np.int32]:
        """Where the tables of a weight's channels begin in `table`, row after row; it broadcasts to `shape`."""
        groups, levels = self.table.shape
        group = np.arange(shape[self.axis], dtype=np.int32) // (shape[self.axis] // groups)
        begin: NDArray[np.int32] = group * np.int32(levels)
        return begin.reshape([-1 if d == self.axis else 1 for d in range(len(shape))])

    def dequantize(self, indices: NDArray[np.integer]) -> NDArray[np.float32]:
        """The real numbers that `indices` stand for, float32."""
        real: NDArray[np.float32] = self.table.ravel()[indices.astype(np.int32) + self.offsets(indices.shape)]
        return real


def encoding_for_range(low: float, high: float, dtype: str, *, symmetric: bool) -> Encoding:
    """Per-tensor encoding covering [low, high] widened to contain 0 (Jacob et al. 2018, arXiv 1712.05877, section 3).

    Symmetric means zero point 0 for signed types and the middle of the range for unsigned ones. Both ends are within what
    the integers reach, but for one that is nearer to 0 than half a step. The scale is the smallest for which that holds.
    """
    first, last = INTEGER_RANGES[dtype]
    low, high = min(float(low), 0.0), max(float(high), 0.0)
    if symmetric:
        middle = (first + last + 1) // 2
        reach = max(-low, high)
        scale = _usable(reach / (last - middle))
        return Encoding(dtype, np.array(scale, np.float32), np.array(middle, np.int32))
    scale = _usable((high - low) / (last - first))
    zero_point = int(np.clip(round(first - low / scale), first, last))
    # Rounding the zero point cuts up to half a step off one end: where a background lies, more than any other error.
    ends = ((high, last - zero_point), (-low, zero_point - first))
    scale = _usable(max(end / (steps or 0.5) for end, steps in ends))
    return Encoding(dtype, np.array(scale, np.float32), np.array(zero_point, np.int32))


def _usable(scale: float) -> float:
    """1 in the place of a scale that float32 can't hold: nothing but zeros was seen."""
    return scale if scale >= float(np.finfo(np.float32).tiny) else 1.0


@dataclass
class EncodingTable:
    """Encodings by tensor name, and palettes beside them, kept as one ``.npz`` file."""

    encodings: dict[str, Encoding] = field(default_factory=dict)
    palettes: dict[str, Palette] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Encoding:
        return self.encodings[name]

    def constant(self, name: str) -> Encoding | Palette:
        """How a constant is written: a weight may have a palette."""
        return self.palettes[name] if name in self.palettes else self.encodings[name]

    def __contains__(self, name: str) -> bool:
        return name in self.encodings

    def __iter__(self) -> Iterator[str]:
        return iter(self.encodings)

    def __len__(self) -> int:
        return len(self.encodings)

    def save(self, path: Path) -> None:
        """Write to `path` (``.npz``), same table, same bytes."""
        from pocketport.calibration.storage import write_npz

        arrays: dict[str, NDArray[np.generic]] = {}
        for name, e in sorted(self.encodings.items()):
            arrays[f"{name}|scale"] = np.asarray(e.scale)
            arrays[f"{name}|zero_point"] = np.asarray(e.zero_point)
            arrays[f"{name}|format"] = np.array([e.dtype, "" if e.axis is None else str(e.axis), str(e.block)])
        for name, palette in sorted(self.palettes.items()):
            arrays[f"{name}|table"] = palette.table
            arrays[f"{name}|axis"] = np.array(palette.axis)
        write_npz(path, arrays)

    @classmethod
    def load(cls, path: Path) -> "EncodingTable":
        """Read what `save` wrote; InputError when `path` is not such a file."""
        from pocketport.calibration.storage import read_npz

        arrays = read_npz(path)
        table = cls()
        for key in arrays:
            name, _, part = key.rpartition("|")
            try:
                if part == "format":
                    dtype, axis, block = (str(v) for v in arrays[key])
                    scale = arrays[f"{name}|scale"].astype(np.float32)
                    zero_point = arrays[f"{name}|zero_point"].astype(np.int32)
                    table.encodings[name] = Encoding(dtype, scale, zero_point, int(axis) if axis else None, int(block))
                elif part == "table":
                    table.palettes[name] = Palette(arrays[key].astype(np.float32), int(arrays[f"{name}|axis"]))
            except (KeyError, ValueError) as error:
                raise InputError(
                    f"tensor {name!r} is incomplete: {error}", where=str(path), fix="calibrate again"
                ) from error
        return table
