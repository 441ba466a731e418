"""Safetensors checkpoints, read defensively: one file, or shards with an index.

The format (huggingface/safetensors): 8 bytes of little-endian header length, a JSON header of
``name → {dtype, shape, data_offsets}``, then the data. Nothing in a file is believed before it is checked, and
no tensor's bytes are read before they are used.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatch
from math import prod
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from pocketport.errors import InputError

MAX_HEADER_BYTES = 100 << 20  # the format's own limit
CHUNK_ELEMENTS = 1 << 20  # how much is looked at a time when searching for NaN
INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
FLOAT_DTYPES: Mapping[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype(ml_dtypes.bfloat16),
}  # fmt: skip
INTEGER_DTYPES: Mapping[str, np.dtype[Any]] = {
    "I64": np.dtype("<i8"), "I32": np.dtype("<i4"), "I16": np.dtype("<i2"), "I8": np.dtype("i1"), "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}  # fmt: skip


class StoredTensor(ir.LazyTensor):
    """A tensor in its place: nothing is read before it is asked for, and nothing stays in memory afterwards.

    `numpy()` gives float32 for float types, integers as they are; `mapped()` gives the stored bytes themselves.

    Attributes:
        file: where it lies.
        offset: first byte in `file`.
        stored_dtype: dtype on disk (``ml_dtypes.bfloat16`` among them).
    """

    def __init__(self, file: Path, offset: int, stored_dtype: np.dtype[Any], shape: tuple[int, ...], name: str) -> None:
        self.file, self.offset, self.stored_dtype = file, offset, stored_dtype
        self._dimensions = shape
        integer = stored_dtype.kind in "iub"
        dtype = ir.DataType.from_numpy(stored_dtype) if integer else ir.DataType.FLOAT
        super().__init__(self._read, dtype=dtype, shape=ir.Shape(shape), name=name)

    @property
    def stored_nbytes(self) -> int:
        """Bytes on disk."""
        return prod(self._dimensions) * self.stored_dtype.itemsize

    def mapped(self) -> NDArray[Any]:
        """A fresh map of this tensor alone, in its stored dtype; copy on write, so that torch takes it.

        The pages go back when the array is dropped.
        """
        if not prod(self._dimensions):
            return np.empty(self._dimensions, self.stored_dtype)
        raw = np.memmap(self.file, np.uint8, "c", offset=self.offset, shape=(self.stored_nbytes,))
        return np.asarray(raw).view(self.stored_dtype).reshape(self._dimensions)

    def _read(self) -> ir.TensorProtocol:
        array = self.mapped()
        return ir.Tensor(array if array.dtype.kind in "iub" else array.astype(np.float32, copy=False), name=self.name)


class Checkpoint(Mapping[str, StoredTensor]):
    """The tensors of a checkpoint by name. Float tensors come as float32, cast when (and each time) they are read.

    Args:
        path: a ``.safetensors`` file, a ``*.safetensors.index.json``, or a folder that holds either.

    Raises:
        InputError: the file is not what it claims to be; the message names file, tensor and reason.
    """

    def __init__(self, path: Path) -> None:
        self.files = _files(path)
        self._tensors: dict[str, StoredTensor] = {}
        for file, expected in self.files.items():
            found = read_safetensors(file)
            missing = sorted(expected - found.keys()) if expected is not None else []
            if missing:
                raise _broken(file, f"the index places {missing[0]!r} in it, but it has no such tensor")
            doubled = sorted(found.keys() & self._tensors.keys())
            if doubled:
                raise _broken(file, f"{doubled[0]!r} is in another shard too")
            self._tensors.update(found)

    def __getitem__(self, name: str) -> StoredTensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def stored(self, name: str) -> NDArray[Any]:
        """The tensor as it lies on disk (memory-mapped, in its own dtype)."""
        return self._tensors[name].mapped()

    def check_finite(self) -> None:
        """Look for NaN and infinity, a chunk at a time.

        Raises:
            InputError: names the first tensor that has one.
        """
        for tensor in self._tensors.values():
            check_finite(tensor)


EXPONENT_MASKS: Mapping[str, tuple[type[np.unsignedinteger[Any]], int]] = {
    "float32": (np.uint32, 0x7F800000), "float16": (np.uint16, 0x7C00), "bfloat16": (np.uint16, 0x7F80),
}  # fmt: skip


def check_finite(tensor: StoredTensor) -> None:
    """Look for NaN and infinity: numbers whose exponent bits are all set (IEEE 754, section 3.4).

    Raises:
        InputError: the tensor has one.
    """
    if tensor.stored_dtype.kind in "iub":
        return
    integer, mask = EXPONENT_MASKS[tensor.stored_dtype.name]
    bits = tensor.mapped().reshape(-1).view(integer)
    for start in range(0, bits.size, CHUNK_ELEMENTS):
        if int((bits[start : start + CHUNK_ELEMENTS] & integer(mask)).max()) == mask:
            raise InputError(
                "it holds NaN or infinity",
                where=f"{tensor.file}, tensor {tensor.name}",
                fix="download or train the checkpoint again",
            )


class TrackedTensors(Mapping[str, ir.TensorProtocol]):
    """Tensors that remember which of them were taken: what nobody took is a part of the model that would be lost."""

    def __init__(self, tensors: Mapping[str, ir.TensorProtocol]) -> None:
        self._tensors = tensors
        self._taken: set[str] = set()

    def __getitem__(self, name: str) -> ir.TensorProtocol:
        tensor = self._tensors[name]
        self._taken.add(name)
        return tensor

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def check_all_taken(self, ignored: Sequence[str]) -> None:
        """Every tensor was taken, but for names that match one of the `ignored` patterns (fnmatch).

        Raises:
            InputError: names the first that was not.
        """
        left = [n for n in sorted(self._tensors) if n not in self._taken and not any(fnmatch(n, p) for p in ignored)]
        if left:
            raise InputError(
                f"the graphs have no place for it (nor for {len(left) - 1} others)",
                where=f"tensor {left[0]}",
                fix="give the config.json that belongs to this checkpoint, or export the model to ONNX",
            )


def _broken(where: Path | str, why: str) -> InputError:
    return InputError(why, where=str(where), fix="download or save the checkpoint again")


def _files(path: Path) -> dict[Path, set[str] | None]:
    """Each safetensors file of a checkpoint, with the tensors its index says it holds (None: there is no index)."""
    if path.is_dir():
        found = [p for p in (path / INDEX_NAME, path / SINGLE_NAME) if p.is_file()] or sorted(
            path.glob("*.safetensors")
        )[:1]
        if not found:
            raise InputError(
                "no .safetensors file in it", where=str(path), fix=f"give a folder that holds {SINGLE_NAME}"
            )
        path = found[0]
    if path.suffix != ".json":
        return {path: None}
    try:
        places = json.loads(path.read_text("utf-8"))["weight_map"]
        pairs = sorted((str(file), str(name)) for name, file in places.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _broken(path, f"not an index of shards: {error!r}") from error
    shards: dict[Path, set[str] | None] = {}
    for file, name in pairs:
        if Path(file).name != file or file in ("", ".", ".."):
            raise InputError(
                f"the shard path {file!r} leaves the folder",
                where=str(path),
                fix="use shards beside the index",
            )
        names = shards.setdefault(path.parent / file, set())
        assert names is not None
        names.add(name)
    return shards


def read_safetensors(path: Path) -> dict[str, StoredTensor]:
    """Find every tensor of one file; see the module's docstring for what is checked."""
    try:
        size = path.stat().st_size
        with path.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if size < 8 or length > min(size - 8, MAX_HEADER_BYTES):
                raise _broken(
                    path,
                    f"its header claims {length} bytes, the file has {max(size - 8, 0)} after the length",
                )
            header = json.loads(stream.read(length).decode("utf-8"), object_pairs_hook=_without_doubles)
    except (OSError, ValueError, RecursionError) as error:
        raise _broken(path, f"not a readable safetensors file: {error}") from error
    if not isinstance(header, dict):
        raise _broken(path, "its header is not a JSON object")
    header.pop("__metadata__", None)
    end = size - 8 - length
    entries = {name: _entry(path, name, entry, end) for name, entry in header.items()}
    _check_tiling(path, {name: span for name, (_, _, span) in entries.items()}, end)
    return {
        name: StoredTensor(path, 8 + length + first, dtype, shape, name)
        for name, (dtype, shape, (first, _)) in entries.items()
    }


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) != len(pairs):
        raise ValueError("a key appears twice in the header")
    return document


def _entry(path: Path, name: str, entry: Any, end: int) -> tuple[np.dtype[Any], tuple[int, ...], tuple[int, int]]:
    """Dtype, shape and byte span of one header entry, all checked."""
    where = f"{path}, tensor {name}"
    try:
        code, shape, (first, last) = entry["dtype"], entry["shape"], entry["data_offsets"]
        integers = [*shape, first, last]
    except (KeyError, TypeError, ValueError) as error:
        raise _broken(where, "its header entry lacks dtype, shape or data_offsets") from error
    if not all(type(n) is int and n >= 0 for n in integers):
        raise _broken(where, "its shape and offsets must be integers from 0")
    dtype = FLOAT_DTYPES.get(code) or INTEGER_DTYPES.get(code) if isinstance(code, str) else None
    if dtype is None:
        known = ", ".join((*FLOAT_DTYPES, *INTEGER_DTYPES))
        raise InputError(f"its dtype {code!r} is not supported", where=where, fix=f"save it as one of {known}")
    if not first <= last <= end:
        raise _broken(where, f"its data lies at {first}…{last}, outside the file's {end} bytes of data")
    if prod(shape) * dtype.itemsize != last - first:
        raise _broken(
            where,
            f"{code} {shape} needs {prod(shape) * dtype.itemsize} bytes, its offsets span {last - first}",
        )
    return dtype, tuple(shape), (first, last)


def _check_tiling(path: Path, spans: Mapping[str, tuple[int, int]], end: int) -> None:
    """The tensors must fill the data without gaps or overlaps, as the format demands."""
    position = 0
    for name, (first, last) in sorted(spans.items(), key=lambda item: item[1]):
        if first != position:
            raise _broken(
                f"{path}, tensor {name}",
                f"its data starts at {first}, the tensor before it ends at {position}",
            )
        position = last
    if position != end:
        raise _broken(path, f"{end - position} bytes at its end belong to no tensor")
