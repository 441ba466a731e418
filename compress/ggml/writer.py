"""GGUF files, version 3, written as a stream: the whole header first, then one tensor after another in runs.

The format is ggml's ``docs/gguf.md``; see `pocketport.compress.ggml.reader`. Offsets are 64 bits wide, so that files have
no limit; no more than one run of a tensor is in memory.
"""

import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pocketport.compress.ggml.reader import ARRAY, BOOL, DEFAULT_ALIGNMENT, MAGIC, SCALARS, STRING
from pocketport.compress.ggml.types import TYPES
from pocketport.files import atomic_file

VERSION = 3

Value: TypeAlias = "bool | int | float | str | Sequence[str] | np.generic | NDArray[Any]"
"""Of a metadata pair. Python's integers go as uint32 and floats as float32, numpy's numbers and arrays in their dtype."""

_CODES: Mapping[np.dtype[Any], int] = {dtype: code for code, dtype in SCALARS.items() if code != BOOL}


@dataclass(frozen=True)
class TensorData:
    """A tensor that will be written.

    Attributes:
        name: in the file.
        type: a ggml type, lower case.
        shape: the blocked dimension last.
        runs: makes its bytes as consecutive arrays of any dtype, C order.
    """

    name: str
    type: str
    shape: tuple[int, ...]
    runs: Callable[[], Iterable[NDArray[Any]]]

    @property
    def nbytes(self) -> int:
        """Bytes in the file, without padding."""
        kind = TYPES[self.type]
        return prod(self.shape) // kind.block * kind.size


def write_gguf(
    path: Path,
    metadata: Mapping[str, Value],
    tensors: Sequence[TensorData],
    progress: Callable[[int], None] | None = None,
) -> None:
    """Write one file atomically, in the order of `tensors`.

    Args:
        path: the file.
        metadata: by key.
        tensors: with distinct names.
        progress: called with the number of tensors written.

    Raises:
        ValueError: a value has no place in GGUF, the last dimension of a tensor is not whole blocks, or a tensor's runs
            give more or fewer bytes than its shape asks for.
    """
    header = [MAGIC, struct.pack("<IQQ", VERSION, len(tensors), len(metadata))]
    header += [_string(key) + _value(key, value) for key, value in metadata.items()]
    offset = 0
    for tensor in tensors:
        kind = TYPES[tensor.type]
        if tensor.shape[-1] % kind.block:
            raise ValueError(f"{tensor.name}: {tensor.shape[-1]} columns are not blocks of {kind.block}")
        dimensions = struct.pack(f"<I{len(tensor.shape)}Q", len(tensor.shape), *reversed(tensor.shape))
        header.append(_string(tensor.name) + dimensions + struct.pack("<IQ", kind.code, offset))
        offset += _aligned(tensor.nbytes)
    packed = b"".join(header)
    with atomic_file(path) as temporary, temporary.open("wb") as stream:
        stream.write(packed + bytes(_aligned(len(packed)) - len(packed)))
        for done, tensor in enumerate(tensors, start=1):
            written = 0
            for run in tensor.runs():
                stream.write(np.ascontiguousarray(run).reshape(-1).view(np.uint8).data)
                written += run.nbytes
            if written != tensor.nbytes:
                raise ValueError(f"{tensor.name}: {written} bytes given, {tensor.nbytes} were announced")
            stream.write(bytes(_aligned(written) - written))
            if progress:
                progress(done)


def _aligned(position: int) -> int:
    return -(-position // DEFAULT_ALIGNMENT) * DEFAULT_ALIGNMENT


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _value(key: str, value: Value) -> bytes:
    """Type code and bytes of one value."""
    if isinstance(value, bool | np.bool_):
        return struct.pack("<I?", BOOL, bool(value))
    if isinstance(value, str):
        return struct.pack("<I", STRING) + _string(value)
    if isinstance(value, int):
        if not 0 <= value < 2**32:
            raise ValueError(f"{key}: {value} is not a uint32")
        return _value(key, np.uint32(value))
    if isinstance(value, float):
        return _value(key, np.float32(value))
    if isinstance(value, np.ndarray | np.generic):
        array = np.asarray(value)
        code = BOOL if array.dtype == np.bool_ else _CODES.get(array.dtype.newbyteorder("<"))
        if code is None or array.ndim > 1:
            raise ValueError(f"{key}: an array of {array.dtype} in {array.ndim} dimensions has no place in GGUF")
        data = array.astype(array.dtype.newbyteorder("<")).tobytes()
        return struct.pack("<I", code) + data if array.ndim == 0 else _array(code, len(array), data)
    return _array(STRING, len(value), b"".join(_string(text) for text in value))


def _array(code: int, count: int, data: bytes) -> bytes:
    return struct.pack("<IIQ", ARRAY, code, count) + data
