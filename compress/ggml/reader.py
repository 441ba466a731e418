"""GGUF files, versions 2 and 3, read defensively: metadata and the places of tensors; no tensor's bytes are read.

The format (ggml's ``docs/gguf.md``), little-endian: magic, version, number of tensors, number of metadata pairs; the
pairs; name, dimensions, type and offset of each tensor; padding; the tensors' data. Nothing in a file is believed before
it is checked: every count and length is held against the bytes that are left before anything is allocated for it.
"""

import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pocketport.compress.ggml.types import GgmlType, type_of_code
from pocketport.errors import InputError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MOST_HEADER_BYTES = 128 << 20  # a vocabulary of 256,000 words with its merges takes 16 MB
MOST_ELEMENTS = 1 << 23  # of all arrays together; the same vocabulary has 1.4 million
MOST_STRING_BYTES = 4 << 20
MOST_TENSORS = 1 << 16
MOST_PAIRS = 1 << 14
MOST_DIMENSIONS = 4
DEFAULT_ALIGNMENT = 32
MOST_ALIGNMENT = 1 << 20

STRING, ARRAY = 8, 9
SCALARS: Mapping[int, np.dtype[Any]] = {
    0: np.dtype("u1"), 1: np.dtype("i1"), 2: np.dtype("<u2"), 3: np.dtype("<i2"), 4: np.dtype("<u4"),
    5: np.dtype("<i4"), 6: np.dtype("<f4"), 7: np.dtype("u1"), 10: np.dtype("<u8"), 11: np.dtype("<i8"),
    12: np.dtype("<f8"),
}  # fmt: skip
BOOL = 7

Value: TypeAlias = "bool | int | float | str | list[str] | NDArray[Any]"
"""Of a metadata pair; arrays of numbers are numpy's."""


@dataclass(frozen=True)
class GgufTensor:
    """One tensor's place.

    Attributes:
        name: in the file.
        shape: the blocked dimension last (the file has them the other way round).
        type: of its blocks.
        offset: first byte in the file.
    """

    name: str
    shape: tuple[int, ...]
    type: GgmlType
    offset: int

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return prod(self.shape) // self.type.block * self.type.size


class GgufFile:
    """One file's metadata and tensors.

    Args:
        path: the file.

    Attributes:
        path: the file.
        metadata: by key.
        tensors: by name, in the file's order.
        header_bytes: where the tensors' data begins.

    Raises:
        InputError: the file is damaged, hostile, or of a version that is not known; the message says where.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            size = path.stat().st_size
            with path.open("rb") as stream:
                data = mmap.mmap(stream.fileno(), min(size, MOST_HEADER_BYTES), access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:  # an empty file can't be mapped
            raise InputError(f"it can't be read: {error}", where=str(path), fix="give a readable .gguf file") from error
        header = _Cursor(path, data, whole=size <= MOST_HEADER_BYTES)
        tensors, pairs = _counts(header)
        self.metadata = _pairs(header, pairs)
        alignment = self.metadata.get("general.alignment", DEFAULT_ALIGNMENT)
        if type(alignment) is not int or not 1 <= alignment <= MOST_ALIGNMENT or alignment & (alignment - 1):
            raise header.broken(f"its alignment {alignment!r} is not a power of two up to {MOST_ALIGNMENT}")
        entries = [_entry(header) for _ in range(tensors)]
        self.header_bytes = -(-header.position // alignment) * alignment
        self.tensors = _placed(path, entries, self.header_bytes, size, alignment)


class _Cursor:
    """A position in the header's bytes, which no read leaves."""

    def __init__(self, path: Path, data: mmap.mmap, *, whole: bool) -> None:
        self.path, self.data, self.whole = path, data, whole
        self.position, self.elements = 0, 0
        self.what = "the header"

    def broken(self, why: str) -> InputError:
        return InputError(why, where=f"{self.path}, {self.what}", fix="download or convert the file again")

    def take(self, count: int) -> int:
        """Step over `count` bytes; where they begin."""
        start = self.position
        if count > len(self.data) - start:
            limit = "the file" if self.whole else f"the {MOST_HEADER_BYTES >> 20} MB that a header may take"
            raise self.broken(f"it needs {count} bytes at {start}, {limit} ends at {len(self.data)}")
        self.position = start + count
        return start

    def unsigned(self, width: int) -> int:
        start = self.take(width)
        return int.from_bytes(self.data[start : start + width], "little")

    def string(self) -> str:
        length = self.unsigned(8)
        if length > MOST_STRING_BYTES:
            raise self.broken(f"a text claims {length} bytes, over {MOST_STRING_BYTES >> 20} MB")
        start = self.take(length)
        try:
            return self.data[start : start + length].decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.broken(f"a text is not UTF-8: {error}") from error

    def array(self) -> list[str] | NDArray[Any]:
        kind, count = self.unsigned(4), self.unsigned(8)
        self.elements += count
        if self.elements > MOST_ELEMENTS:
            raise self.broken(f"an array claims {count} elements; all may have {MOST_ELEMENTS} together")
        if kind == STRING:
            return [self.string() for _ in range(count)]
        return np.frombuffer(self.data, *self._numbers(kind, count)).copy()

    def scalar(self, kind: int) -> Value:
        dtype, _, start = self._numbers(kind, 1)
        value = np.frombuffer(self.data, dtype, 1, start)[0].item()
        if kind == BOOL and value not in (0, 1):
            raise self.broken(f"a truth value is {value}")
        result: bool | int | float = bool(value) if kind == BOOL else value
        return result

    def _numbers(self, kind: int, count: int) -> tuple[np.dtype[Any], int, int]:
        """Dtype, count and start of numbers, stepped over."""
        if kind not in SCALARS:
            raise self.broken("it is an array of arrays" if kind == ARRAY else f"its type number {kind} is not known")
        return SCALARS[kind], count, self.take(count * SCALARS[kind].itemsize)


def _counts(header: _Cursor) -> tuple[int, int]:
    """Numbers of tensors and of metadata pairs."""
    start = header.take(4)
    if header.data[start : start + 4] != MAGIC:
        raise header.broken("it does not begin with GGUF")
    version = header.unsigned(4)
    if version not in VERSIONS:
        swapped = int.from_bytes(version.to_bytes(4, "little"), "big") in VERSIONS
        why = "it is big-endian" if swapped else f"its version {version} is not known"
        raise InputError(why, where=str(header.path), fix="convert it to version 3, little-endian")
    tensors, pairs = header.unsigned(8), header.unsigned(8)
    if tensors > MOST_TENSORS or pairs > MOST_PAIRS:
        raise header.broken(
            f"it claims {tensors} tensors and {pairs} metadata pairs, over {MOST_TENSORS} and {MOST_PAIRS}"
        )
    return tensors, pairs


def _pairs(header: _Cursor, count: int) -> dict[str, Value]:
    metadata: dict[str, Value] = {}
    for index in range(count):
        header.what = f"metadata pair {index}"
        key = header.string()
        header.what = f"metadata {key[:100]!r}"
        if key in metadata:
            raise header.broken("the key appears twice")
        kind = header.unsigned(4)
        metadata[key] = header.string() if kind == STRING else header.array() if kind == ARRAY else header.scalar(kind)
    return metadata


def _entry(header: _Cursor) -> GgufTensor:
    """One tensor's entry; its offset is still counted from the start of the data."""
    header.what = "the tensors' table"
    name = header.string()
    header.what = f"tensor {name[:100]!r}"
    dimensions = header.unsigned(4)
    if not 1 <= dimensions <= MOST_DIMENSIONS:
        raise header.broken(f"it claims {dimensions} dimensions, not 1 to {MOST_DIMENSIONS}")
    shape = tuple(header.unsigned(8) for _ in range(dimensions))[::-1]
    kind = type_of_code(header.unsigned(4), f"{header.path}, {header.what}")
    if 0 in shape or shape[-1] % kind.block:
        raise header.broken(f"its shape {list(shape)} is not rows of whole {kind.name} blocks of {kind.block}")
    return GgufTensor(name, shape, kind, header.unsigned(8))


def _placed(
    path: Path, entries: list[GgufTensor], start: int, size: int, alignment: int
) -> dict[str, GgufTensor]:  # fmt: skip
    """The tensors by name, their offsets counted from the start of the file; no two share a byte."""
    tensors: dict[str, GgufTensor] = {}
    for entry in entries:
        placed = GgufTensor(entry.name, entry.shape, entry.type, start + entry.offset)
        why = ""
        if entry.name in tensors:
            why = "the name appears twice"
        elif entry.offset % alignment:
            why = f"its offset {entry.offset} is not a multiple of the alignment {alignment}"
        elif placed.offset + placed.nbytes > size:
            why = f"its data lies at {placed.offset}…{placed.offset + placed.nbytes}, the file ends at {size}"
        if why:
            raise _misplaced(path, entry.name, why)
        tensors[entry.name] = placed
    end, before = start, ""
    for tensor in sorted(tensors.values(), key=lambda t: t.offset):
        if tensor.offset < end:
            raise _misplaced(path, tensor.name, f"its data begins at {tensor.offset}, within that of {before}")
        end, before = tensor.offset + tensor.nbytes, tensor.name
    return tensors


def _misplaced(path: Path, name: str, why: str) -> InputError:
    return InputError(why, where=f"{path}, tensor {name[:100]!r}", fix="download or convert the file again")
