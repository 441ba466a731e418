"""Safetensors files written as a stream: the header first, then every tensor in runs; never a whole checkpoint in memory.

Layout (huggingface/safetensors): 8 bytes of little-endian header length, a JSON header padded with spaces to a multiple
of 8 bytes, the data without gaps. Shards and their index are named as transformers names them.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pocketport.compress.checkpoint import FLOAT_DTYPES, INDEX_NAME, INTEGER_DTYPES, SINGLE_NAME
from pocketport.files import atomic_file, write_json

SHARD_BYTES = 5_000_000_000
ALIGNMENT = 8
DTYPES: Mapping[str, np.dtype[Any]] = {**FLOAT_DTYPES, **INTEGER_DTYPES}
CODES: Mapping[np.dtype[Any], str] = {dtype: code for code, dtype in DTYPES.items()}


@dataclass(frozen=True)
class TensorEntry:
    """A tensor that will be written.

    Attributes:
        name: of the tensor.
        code: its dtype as safetensors names it (``BF16``, ``I32``).
        shape: of the tensor.
    """

    name: str
    code: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of its data."""
        return prod(self.shape) * DTYPES[self.code].itemsize


Runs: TypeAlias = Callable[[TensorEntry], Iterable[NDArray[Any]]]
"""The data of a tensor as consecutive runs, C order; the runs' dtypes are the entry's."""


def write_safetensors(path: Path, entries: Sequence[TensorEntry], runs: Runs) -> None:
    """Write one file atomically, in the order of `entries`.

    Raises:
        ValueError: the runs of a tensor have another dtype, or give more or fewer bytes than its shape asks for.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for entry in entries:
        offsets = [position, position + entry.nbytes]
        header[entry.name] = {"dtype": entry.code, "shape": list(entry.shape), "data_offsets": offsets}
        position += entry.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    with atomic_file(path) as temporary, temporary.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for entry in entries:
            written = 0
            for run in runs(entry):
                if run.dtype != DTYPES[entry.code]:
                    raise ValueError(f"{entry.name}: a run of {run.dtype}, {entry.code} was announced")
                stream.write(np.ascontiguousarray(run).reshape(-1).view(np.uint8).data)
                written += run.nbytes
            if written != entry.nbytes:
                raise ValueError(f"{entry.name}: {written} bytes given, {entry.nbytes} were announced")


def write_checkpoint(
    directory: Path, entries: Sequence[TensorEntry], runs: Runs, *, shard_bytes: int = SHARD_BYTES
) -> list[Path]:
    """Write ``model.safetensors``, or shards of at most `shard_bytes` (but for a larger tensor) with their index.

    Returns:
        The files written.
    """
    shards: list[list[TensorEntry]] = [[]]
    for entry in entries:
        if shards[-1] and sum(e.nbytes for e in shards[-1]) + entry.nbytes > shard_bytes:
            shards.append([])
        shards[-1].append(entry)
    if len(shards) == 1:
        write_safetensors(directory / SINGLE_NAME, shards[0], runs)
        return [directory / SINGLE_NAME]
    places: dict[str, str] = {}
    files = []
    for number, shard in enumerate(shards, start=1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        write_safetensors(directory / name, shard, runs)
        files.append(directory / name)
        places |= {entry.name: name for entry in shard}
    index = directory / INDEX_NAME
    write_json(index, {"metadata": {"total_size": sum(e.nbytes for e in entries)}, "weight_map": places})
    return [*files, index]
