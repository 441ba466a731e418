"""Weights in their quantized form, in memory and on disk, before any file format has packed them.

On disk they are a directory: ``index.json`` (tensor → part and form) and ``part-*.safetensors``. Of a `QuantizedWeight`
a part holds ``<name>.integers`` (two to a byte up to 4 bits, low half first), ``<name>.scale``, ``<name>.zero_point``
and, where there is one, ``<name>.group_index``; of a `PackedWeight` it holds ``<name>.data``.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from pocketport.compress.checkpoint import StoredTensor, read_safetensors
from pocketport.errors import InputError
from pocketport.files import atomic_file, write_json

INDEX_NAME = "index.json"


@dataclass(frozen=True)
class QuantizedWeight:
    """A matrix [N, K] in integers: value = (integers − zero_point) · scale.

    Attributes:
        bits: of one weight, 2 to 8.
        block: columns that share a scale; K per channel.
        symmetric: every zero point is 2^(bits−1).
        integers: uint8 [N, K], 0 … 2^bits − 1.
        scale: float32 [N, G] for G groups of a row.
        zero_point: uint8 [N, G].
        group_index: int32 [K], the group of each column, where groups are not runs of `block` columns.
    """

    bits: int
    block: int
    symmetric: bool
    integers: NDArray[np.uint8]
    scale: NDArray[np.float32]
    zero_point: NDArray[np.uint8]
    group_index: NDArray[np.int32] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, K)."""
        return self.integers.shape

    def dequantized(self) -> NDArray[np.float32]:
        """The matrix [N, K] that the integers stand for."""
        if self.group_index is None:
            n, k = self.integers.shape
            grouped = self.integers.reshape(n, -1, self.block).astype(np.float32)
            grouped -= self.zero_point[..., None]
            grouped *= self.scale[..., None]
            return grouped.reshape(n, k)
        centred = self.integers.astype(np.float32) - self.zero_point[:, self.group_index]
        return centred * self.scale[:, self.group_index]


@dataclass(frozen=True)
class PackedWeight:
    """A tensor in one of ggml's block formats.

    Attributes:
        type: ``q4_k``, ``q6_k``, ``q8_0``, ``q4_0``, ``iq4_xs``, ``f16`` …
        shape: of the tensor, the blocked dimension last.
        data: its bytes, uint8, row after row as in a GGUF file.
    """

    type: str
    shape: tuple[int, ...]
    data: NDArray[np.uint8]


Quantized: TypeAlias = QuantizedWeight | PackedWeight


class QuantizedWeights(Mapping[str, Quantized]):
    """The quantized tensors of one model by published name, read from disk one at a time.

    Raises:
        InputError: `directory` does not hold what its index says.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        path = directory / INDEX_NAME
        try:
            self._index: dict[str, dict[str, Any]] = json.loads(path.read_text("utf-8"))["tensors"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"not quantized weights: {error!r}", where=str(path), fix="quantize again") from error
        parts = sorted({str(entry["part"]) for entry in self._index.values()})
        self._stored: dict[str, StoredTensor] = {}
        for part in parts:
            self._stored.update(read_safetensors(directory / part))

    def __getitem__(self, name: str) -> Quantized:
        entry = self._index[name]
        if entry["form"] == "packed":
            return PackedWeight(entry["type"], tuple(entry["shape"]), self._stored[f"{name}.data"].mapped())
        integers = self._stored[f"{name}.integers"].mapped()
        index = self._stored.get(f"{name}.group_index")
        return QuantizedWeight(
            bits=entry["bits"],
            block=entry["block"],
            symmetric=entry["symmetric"],
            integers=unpack_nibbles(integers, entry["columns"]) if entry["bits"] <= 4 else integers,
            scale=self._stored[f"{name}.scale"].mapped(),
            zero_point=self._stored[f"{name}.zero_point"].mapped(),
            group_index=None if index is None else index.mapped(),
        )

    def __iter__(self) -> Iterator[str]:
        return iter(self._index)

    def __len__(self) -> int:
        return len(self._index)

    def part(self, name: str, part: str) -> NDArray[Any]:
        """One array of a matrix in integers, memory-mapped: ``scale``, ``zero_point``, or ``integers`` as on disk."""
        return self._stored[f"{name}.{part}"].mapped()

    def form(self, name: str) -> Mapping[str, Any]:
        """What the index says of a tensor, without reading it: ``form`` and the form's own fields."""
        return self._index[name]


def write_part(path: Path, weights: Mapping[str, Quantized]) -> dict[str, dict[str, Any]]:
    """Write one part atomically; returns its entries for the index. The same weights give the same bytes."""
    arrays: dict[str, NDArray[Any]] = {}
    entries: dict[str, dict[str, Any]] = {}
    for name, weight in sorted(weights.items()):
        if isinstance(weight, PackedWeight):
            arrays[f"{name}.data"] = weight.data
            entries[name] = {"part": path.name, "form": "packed", "type": weight.type, "shape": list(weight.shape)}
            continue
        packed = pack_nibbles(weight.integers) if weight.bits <= 4 else weight.integers
        arrays |= {f"{name}.integers": packed, f"{name}.scale": weight.scale, f"{name}.zero_point": weight.zero_point}
        if weight.group_index is not None:
            arrays[f"{name}.group_index"] = weight.group_index
        entries[name] = {
            "part": path.name, "form": "integers", "bits": weight.bits, "block": weight.block,
            "symmetric": weight.symmetric, "rows": weight.integers.shape[0], "columns": weight.integers.shape[1],
            "reordered": weight.group_index is not None,
        }  # fmt: skip
    with atomic_file(path) as temporary:
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, temporary)
    return entries


def write_index(directory: Path, entries: Mapping[str, Mapping[str, Any]]) -> None:
    """Write the index over all parts; only then is the directory whole."""
    write_json(directory / INDEX_NAME, {"schema_name": "pocketport.quantized-weights/1", "tensors": dict(entries)})


def pack_nibbles(integers: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """[N, K] of 0 … 15 → [N, ⌈K/2⌉], even columns in the low halves."""
    if integers.shape[1] % 2:
        integers = np.pad(integers, ((0, 0), (0, 1)))
    return np.asarray(integers[:, 0::2] | (integers[:, 1::2] << 4), np.uint8)


def unpack_nibbles(packed: NDArray[np.uint8], columns: int) -> NDArray[np.uint8]:
    """The inverse of `pack_nibbles`: [N, ⌈columns/2⌉] → [N, columns]."""
    integers = np.empty((packed.shape[0], packed.shape[1] * 2), np.uint8)
    np.bitwise_and(packed, 15, out=integers[:, 0::2])
    np.right_shift(packed, 4, out=integers[:, 1::2])
    return integers[:, :columns]
