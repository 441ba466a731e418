"""Linear layers that their publisher packed into 32-bit words: what GPTQ, AWQ and compressed-tensors have in common."""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from pocketport.compress.checkpoint import FLOAT_DTYPES, Checkpoint, StoredTensor
from pocketport.compress.graph import dimensions
from pocketport.compress.quantized_weights import QuantizedWeight
from pocketport.compress.schemes import Granularity, Scheme
from pocketport.compress.sources.source import QuantizedTensor
from pocketport.errors import InputError

KINDS = {"i": (np.dtype("<i4"),), "n": (np.dtype("<i4"), np.dtype("<i8")), "f": tuple(FLOAT_DTYPES.values())}


class PackedLinear(QuantizedTensor):
    """The weight [N, K] of one layer.

    Args:
        name: ``<layer>.weight``.
        shape: (N, K).
        bits: of one integer.
        block: columns that share a scale.
        symmetric: what the publisher says of the zero points; checked when they are read.
        parts: the layer's stored tensors by their own names (``qweight``).
    """

    def __init__(
        self, name: str, shape: tuple[int, int], bits: int, block: int, symmetric: bool, parts: Mapping[str, StoredTensor]
    ) -> None:  # fmt: skip
        super().__init__(shape, name)
        self.bits, self.block, self.symmetric = bits, block, symmetric
        self.parts, self._part = tuple(parts.values()), parts
        self.scheme = f"w{bits}cfp16" if block == shape[1] else f"w{bits}b{block}fp16"

    @property
    def rows(self) -> int:
        """N."""
        return dimensions(self)[0]

    @property
    def columns(self) -> int:
        """K."""
        return dimensions(self)[1]

    @property
    def where(self) -> str:
        """File and tensor, for errors."""
        return f"{self.parts[0].file}, tensor {self.parts[0].name}"

    def stored(self, part: str) -> NDArray[Any]:
        """One of the stored tensors, as it lies on disk."""
        return self._part[part].mapped()

    def has(self, part: str) -> bool:
        """Whether there is such a stored tensor."""
        return part in self._part

    @abstractmethod
    def integers(self) -> NDArray[np.uint8]:
        """[N, K]."""

    @abstractmethod
    def zero_points(self) -> NDArray[np.uint8]:
        """[N, G]."""

    @abstractmethod
    def scales(self) -> NDArray[Any]:
        """[N, G]."""

    def group_index(self) -> NDArray[np.int32] | None:
        """The group of each column [K], None where groups are runs.

        Raises:
            InputError: it names groups that there are not.
        """
        if not self.has("g_idx"):
            return None
        index = self.stored("g_idx").astype(np.int32)
        groups = -(-self.columns // self.block)
        if index.min() < 0 or index.max() >= groups:
            raise broken(f"it names the groups {index.min()} to {index.max()}, there are {groups}", self._part["g_idx"])
        runs = not self.columns % self.block and np.array_equal(index, np.arange(self.columns) // self.block)
        return None if runs else index

    @property
    def reordered(self) -> bool:  # type: ignore[override]
        """Whether its columns are not grouped in runs."""
        return self.group_index() is not None

    def quantized(self) -> QuantizedWeight:
        """The published integers, scales and zero points.

        Raises:
            InputError: the group index is out of range, or the zero points are not where the publisher says.
        """
        index, zero = self.group_index(), np.ascontiguousarray(self.zero_points())
        if self.symmetric and (zero != 2 ** (self.bits - 1)).any():
            raise InputError(
                f"its zero points are not all {2 ** (self.bits - 1)}, as a symmetric form has them",
                where=self.where,
                fix="say in the quantization's configuration that it is not symmetric",
            )
        scale = np.ascontiguousarray(self.scales(), dtype=np.float32)
        integers = np.ascontiguousarray(self.integers())
        return QuantizedWeight(self.bits, self.block, self.symmetric, integers, scale, zero, index)

    def fits(self, scheme: Scheme, symmetric: bool) -> bool:
        """Whether `scheme` has the same bits and blocks, and zero points that can hold its own."""
        return (
            scheme.weight_bits == self.bits
            and scheme.granularity is not Granularity.TENSOR
            and (scheme.block or self.columns) == self.block
            and symmetric == self.symmetric
        )


def with_weights(
    checkpoint: Checkpoint, parts: Sequence[str], build: Callable[[str], PackedLinear]
) -> dict[str, ir.TensorProtocol]:
    """The checkpoint's tensors, with one ``<layer>.weight`` in the place of each quantized layer's own tensors.

    Args:
        checkpoint: of the tensors.
        parts: names of a layer's own tensors; the first is that of its packed integers.
        build: the layer's path with its dot → its weight.

    Raises:
        InputError: no layer is quantized, or one has its weight in floats too.
    """
    marker = f".{parts[0]}"
    layers = {name: name.removesuffix(parts[0]) for name in checkpoint if name.endswith(marker)}
    if not layers:
        raise InputError(
            f"its configuration says that it is quantized, but no tensor is named *{marker}",
            where=str(next(iter(checkpoint.files))),
            fix="give the config.json that belongs to this checkpoint",
        )
    taken = {f"{layer}{part}" for layer in layers.values() for part in parts}
    tensors: dict[str, ir.TensorProtocol] = {}
    for name, tensor in checkpoint.items():
        if name in layers:
            weight = build(layers[name])
            if weight.name in checkpoint:
                raise broken("the layer is quantized, and has its weight in floats too", tensor)
            tensors[f"{layers[name]}weight"] = weight
        elif name not in taken:
            tensors[name] = tensor
    return tensors


def required(checkpoint: Checkpoint, name: str, kind: str, shape: tuple[int, ...] | None = None) -> StoredTensor:
    """A tensor that a quantized layer must have.

    Args:
        checkpoint: of the tensors.
        name: of the tensor.
        kind: ``i`` for int32, ``n`` for int32 or int64, ``f`` for floats.
        shape: that it must have.

    Raises:
        InputError: it is missing, of another kind or shape, or empty.
    """
    if name not in checkpoint:
        raise InputError(
            "the layer is quantized, but this tensor of it is missing",
            where=f"{next(iter(checkpoint.files))}, tensor {name}",
            fix="download or save the checkpoint again",
        )
    tensor = checkpoint[name]
    found = dimensions(tensor)
    if tensor.stored_dtype not in KINDS[kind]:
        raise broken(f"it holds {tensor.stored_dtype}, not {' or '.join(map(str, KINDS[kind]))}", tensor)
    if 0 in found or (shape is not None and found != shape):
        raise broken(f"its shape is {list(found)}, not {list(shape or ())}", tensor)
    return tensor


def matrix(tensor: StoredTensor) -> tuple[int, int]:
    """The shape of a tensor of two dimensions; InputError for others."""
    shape = dimensions(tensor)
    if len(shape) != 2:
        raise broken(f"its shape {list(shape)} is no matrix", tensor)
    return shape[0], shape[1]


def broken(why: str, tensor: StoredTensor) -> InputError:
    """An error about a stored tensor."""
    return InputError(why, where=f"{tensor.file}, tensor {tensor.name}", fix="download or save the checkpoint again")


def refused(why: str, folder: Path) -> InputError:
    """An error about the quantization's configuration."""
    return InputError(
        why, where=f"{folder}, quantization_config", fix="give the float checkpoint, or one that is quantized in another way"
    )  # fmt: skip
