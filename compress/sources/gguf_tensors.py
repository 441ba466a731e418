"""Tensors of GGUF files under published names and layouts: lazy, in place, in their own integers where they have some."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeAlias

import ml_dtypes
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from pocketport.compress.checkpoint import StoredTensor
from pocketport.compress.ggml.dequantize import DEQUANTIZERS, SCALES, dequantize, fifth_bit, half, nibbles, unreadable
from pocketport.compress.ggml.reader import GgufTensor
from pocketport.compress.ggml.types import GgmlType
from pocketport.compress.graph import dimensions
from pocketport.compress.quantized_weights import QuantizedWeight
from pocketport.compress.schemes import Scheme
from pocketport.compress.sources.source import DerivedTensor, QuantizedTensor
from pocketport.errors import InputError

PLAIN = {"f32": np.dtype("<f4"), "f16": np.dtype("<f2"), "bf16": np.dtype(ml_dtypes.bfloat16)}
CHECKED_BYTES = 1 << 24  # of blocks at a time, when scales are looked at

Order = NDArray[np.intp]
Bytes = NDArray[np.uint8]


class StoredBlocks(StoredTensor):
    """The bytes of a tensor in one of ggml's block formats, uint8 [rows, bytes of a row].

    Attributes:
        ggml: its type.
    """

    def __init__(self, file: Path, tensor: GgufTensor) -> None:
        self.ggml: GgmlType = tensor.type
        row = tensor.type.row_bytes(tensor.shape[-1])
        super().__init__(file, tensor.offset, np.dtype("u1"), (tensor.nbytes // row, row), tensor.name)


def check_scales(tensor: StoredBlocks) -> None:
    """Look for NaN and infinity among the scales and offsets of the blocks.

    Raises:
        InputError: the tensor has one.
    """
    dtype, places = SCALES.get(tensor.ggml.name, ("<f2", ()))
    width = np.dtype(dtype).itemsize
    blocks = tensor.mapped().reshape(-1, tensor.ggml.size)
    step = CHECKED_BYTES // tensor.ggml.size
    for start in range(0, len(blocks), step):
        for place in places:
            floats = np.ascontiguousarray(blocks[start : start + step, place : place + width]).view(dtype)
            if not np.isfinite(floats).all():
                raise InputError(
                    "a scale of it is NaN or infinite",
                    where=f"{tensor.file}, tensor {tensor.name}",
                    fix="download or convert the file again",
                )


class BlockTensor(QuantizedTensor):
    """A tensor in one of ggml's block formats: reads as float32, block by block.

    Formats with one scale for each block of whole-number weights (`INTEGER_FORMS`) are integers of ours too; the others
    add offsets in floats, or scale their scales, and have no such form: `fits` says no.

    Args:
        stored: its bytes.
        shape: of it.
        name: its published name.
        order: published row → row in the file; None: the same.
    """

    def __init__(self, stored: StoredBlocks, shape: tuple[int, ...], name: str, order: Order | None) -> None:
        super().__init__(shape, name)
        self.parts, self._stored, self._order = (stored,), stored, order
        self.bits = INTEGER_FORMS.get(stored.ggml.name, 0) if len(shape) == 2 else 0
        self.scheme = f"w{self.bits}b{stored.ggml.block}fp16" if self.bits else ""

    def quantized(self) -> QuantizedWeight:
        """The blocks' own integers and scales.

        Raises:
            InputError: its format has no such form.
        """
        kind, (rows, columns) = self._stored.ggml, dimensions(self)
        if not self.bits:
            raise InputError(
                f"its type {kind.name} is no matrix of integers with zero points",
                where=f"{self._stored.file}, tensor {self._stored.name}",
                fix="quantize it anew",
            )
        blocks = self._bytes().reshape(-1, kind.size)
        groups = (rows, columns // kind.block)
        return QuantizedWeight(
            bits=self.bits, block=kind.block, symmetric=True,
            integers=_integers(kind.name, np.ascontiguousarray(blocks[:, 2:])).reshape(rows, columns),
            scale=half(blocks[:, :2]).reshape(groups),
            zero_point=np.full(groups, 2 ** (self.bits - 1), np.uint8),
        )  # fmt: skip

    def fits(self, scheme: Scheme, symmetric: bool) -> bool:
        """Whether `scheme` has blocks of the same bits and length."""
        kind = self._stored.ggml
        return bool(self.bits) and symmetric and (scheme.weight_bits, scheme.block) == (self.bits, kind.block)

    def _bytes(self) -> Bytes:
        data: Bytes = self._stored.mapped()
        return data if self._order is None else data[self._order]

    def _read(self) -> ir.TensorProtocol:
        where = f"{self._stored.file}, tensor {self._stored.name}"
        numbers = dequantize(self._stored.ggml, self._bytes(), where)
        return ir.Tensor(numbers.reshape(dimensions(self)), name=self.name)


Published: TypeAlias = StoredTensor | BlockTensor | DerivedTensor

INTEGER_FORMS = {"q4_0": 4, "q5_0": 5, "q8_0": 8}
"""Type → bits of those whose blocks are a float16 scale and integers around zero."""


def _integers(kind: str, data: Bytes) -> Bytes:
    """Integers from 0 on [B, 32] of blocks without their scale."""
    if kind == "q4_0":
        return nibbles(data, 16)
    if kind == "q5_0":
        return fifth_bit(nibbles(data[:, 4:], 16), data[:, :4])
    return np.bitwise_xor(data, 128, dtype=np.uint8)  # two's complement, counted from −128


def published_tensor(file: Path, tensor: GgufTensor, name: str, order: Order | None = None) -> Published:
    """A tensor of a file by its published name.

    Args:
        file: where it lies.
        tensor: its place in the file.
        name: its published name.
        order: published row → row in the file, where they differ.

    Raises:
        InputError: its type can't be read.
    """
    kind = tensor.type
    if kind.name not in DEQUANTIZERS:
        raise unreadable(kind, f"{file}, tensor {tensor.name}")
    if kind.name not in PLAIN:
        return BlockTensor(StoredBlocks(file, tensor), tensor.shape, name, order)
    stored = StoredTensor(file, tensor.offset, PLAIN[kind.name], tensor.shape, name)
    return stored if order is None else changed(stored, lambda array: array[order], name, tensor.shape)


def changed(
    tensor: Published,
    change: Callable[[NDArray[np.float32]], NDArray[np.float32]],
    name: str,
    shape: tuple[int, ...],
) -> DerivedTensor:
    """`change` of a tensor's numbers, applied when they are read."""
    return stacked([tensor], lambda arrays: change(arrays[0]), name, shape)


def stacked(
    tensors: list[Published],
    combine: Callable[[list[NDArray[np.float32]]], NDArray[np.float32]],
    name: str,
    shape: tuple[int, ...],
) -> DerivedTensor:
    """What `combine` makes of several tensors' numbers when they are read."""
    parts = [part for t in tensors for part in ((t,) if isinstance(t, StoredTensor) else t.parts)]
    return DerivedTensor(partial(_combined, tensors, combine), shape, name, tuple(parts))


def _combined(
    tensors: list[Published],
    combine: Callable[[list[NDArray[np.float32]]], NDArray[np.float32]],
) -> NDArray[np.float32]:
    return np.ascontiguousarray(combine([np.asarray(t.numpy(), np.float32) for t in tensors]))
