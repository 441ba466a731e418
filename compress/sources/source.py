"""Source: a model as it was published, whatever file format it came in."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from pocketport.compress.checkpoint import StoredTensor
from pocketport.compress.quantized_weights import QuantizedWeight
from pocketport.compress.schemes import Scheme
from pocketport.files import sha256_files


@dataclass(frozen=True)
class Source:
    """What model families read.

    Attributes:
        path: the folder or file.
        config: ``config.json``; other formats' metadata is translated into its terms.
        tensors: by their published (Hugging Face) names, lazy; float types read as float32.
        files: tokenizer and processor files by file name.
        weight_files: the files that hold the tensors, and say how they are packed.
    """

    path: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, ir.TensorProtocol]
    files: Mapping[str, Path] = field(default_factory=dict)
    weight_files: tuple[Path, ...] = ()

    def sha256(self) -> str:
        """Hash of every file, by name and content; of large files that did not change since, from a cache."""
        return sha256_files([*self.files.values(), *self.weight_files])


class QuantizedTensor(ir.LazyTensor):
    """A weight that its publisher quantized: reads as float32, and can be had in its own integers.

    Attributes:
        parts: the stored tensors that it is made of.
        scheme: its own form in the grammar of `Scheme`, "" where that has no name for it.
        symmetric: every zero point is in the middle of the integers.
        reordered: its columns are not grouped in runs (`QuantizedWeight.group_index`).
    """

    parts: tuple[StoredTensor, ...] = ()
    scheme: str = ""
    symmetric: bool = True
    reordered: bool = False

    def quantized(self) -> QuantizedWeight:
        """The published integers, scales and zero points of a matrix [N, K]."""
        raise NotImplementedError

    def fits(self, scheme: Scheme, symmetric: bool) -> bool:
        """Whether its own integers are already in `scheme`, so that they can be taken over."""
        raise NotImplementedError

    def __init__(self, shape: tuple[int, ...], name: str) -> None:
        super().__init__(self._read, dtype=ir.DataType.FLOAT, shape=ir.Shape(shape), name=name)

    def _read(self) -> ir.TensorProtocol:
        array: NDArray[np.float32] = self.quantized().dequantized()
        return ir.Tensor(array, name=self.name)


class DerivedTensor(ir.LazyTensor):
    """A tensor that the file holds in another layout: computed, as float32, each time it is read.

    Args:
        compute: gives it.
        shape: of it.
        name: its published name.
        parts: the stored tensors that it is made of.
    """

    def __init__(
        self, compute: Callable[[], NDArray[np.float32]], shape: tuple[int, ...], name: str, parts: tuple[StoredTensor, ...]
    ) -> None:  # fmt: skip
        self.parts = parts
        super().__init__(
            lambda: ir.Tensor(compute(), name=name), dtype=ir.DataType.FLOAT, shape=ir.Shape(shape), name=name
        )
