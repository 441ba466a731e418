"""What is done already, on disk: finished parts, and the activations behind the last finished layer.

A part appears by one rename, its entry in the journal by another; whatever a kill leaves besides is written again.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray

from pocketport.compress.blockwise.activations import Activations
from pocketport.compress.checkpoint import read_safetensors
from pocketport.compress.quantized_weights import Quantized, write_index, write_part
from pocketport.compress.safetensors_writer import TensorEntry, write_safetensors
from pocketport.compress.torch_device import as_torch
from pocketport.files import write_json

ENTRIES, STATE = ".entries.json", ".activations.safetensors"


class Journal:
    """The parts of one directory of quantized weights.

    Args:
        directory: where they go; it may hold what a killed run left.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._done: dict[str, dict[str, dict[str, Any]]] = {}
        for path in sorted(directory.glob(f"*{ENTRIES}")):
            self._done[path.name.removesuffix(ENTRIES)] = json.loads(path.read_text("utf-8"))

    def done(self, part: str) -> bool:
        """Whether a part is finished."""
        return part in self._done

    def tensors(self, part: str) -> int:
        """How many tensors a finished part holds."""
        return len(self._done[part])

    def write(self, part: str, weights: Mapping[str, Quantized]) -> None:
        """Write a part and enter it."""
        entries = write_part(self.directory / f"{part}.safetensors", weights)
        write_json(self.directory / f"{part}{ENTRIES}", entries)
        self._done[part] = entries

    def save_state(self, part: str, activations: Activations, samples: int) -> None:
        """Write every sample's activations behind the layer of `part`, for whoever goes on from there."""
        names = sorted(activations.names(0))
        cpu = torch.device("cpu")
        entries = [
            TensorEntry(f"{sample}/{name}", "F32", tuple(activations.get(name, sample, cpu).shape))
            for sample in range(samples)
            for name in names
        ]

        def runs(entry: TensorEntry) -> Iterator[NDArray[Any]]:
            sample, _, name = entry.name.partition("/")
            yield activations.get(name, int(sample), cpu).numpy()

        write_safetensors(self.directory / f"{part}{STATE}", entries, runs)

    def has_state(self, part: str) -> bool:
        """Whether the activations behind the layer of `part` are there."""
        return (self.directory / f"{part}{STATE}").is_file()

    def load_state(self, part: str, activations: Activations) -> None:
        """Take in what `save_state` wrote."""
        for key, tensor in read_safetensors(self.directory / f"{part}{STATE}").items():
            sample, _, name = key.partition("/")
            activations.put(name, int(sample), as_torch(tensor.mapped()))

    def drop_state(self, part: str) -> None:
        """Remove the activations behind a layer: a later layer's are there."""
        (self.directory / f"{part}{STATE}").unlink(missing_ok=True)

    def finish(self) -> None:
        """Write the index over all parts and remove everything else."""
        write_index(self.directory, {name: entry for part in self._done.values() for name, entry in part.items()})
        for pattern in (f"*{ENTRIES}", f"*{STATE}", ".*"):
            for path in self.directory.glob(pattern):
                path.unlink()
