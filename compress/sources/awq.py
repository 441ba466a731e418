"""AWQ checkpoints in, as AutoAWQ writes them.

For a linear layer [N, K] in 4 bits with G groups. Layout ``gemm`` (AutoAWQ's ``WQLinear_GEMM``): ``qweight`` int32
[K, N/8] and ``qzeros`` int32 [G, N/8], packed along N, where the integers of a word are those of the rows 0 2 4 6 1 3 5 7;
``scales`` [G, N]. Layout ``gemv``: ``qweight`` int32 [N, K/8] and ``qzeros`` int32 [N, ≥ G/8], packed in order along K
and G; ``scales`` [N, ≥ G].
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from pocketport.compress.checkpoint import Checkpoint
from pocketport.compress.formats.packing import unpack_words
from pocketport.compress.graph import dimensions
from pocketport.compress.sources.packed import PackedLinear, broken, matrix, refused, required, with_weights

PARTS = ("qweight", "qzeros", "scales")
BITS, PER_WORD = 4, 8
PLACES = np.argsort([0, 2, 4, 6, 1, 3, 5, 7])  # where in its word each row of eight lies


def awq_tensors(
    checkpoint: Checkpoint, quantization: Mapping[str, Any], folder: Path
) -> Mapping[str, ir.TensorProtocol]:
    """The tensors by the names of the float model; quantized weights keep their integers and unpack when they are read.

    Args:
        checkpoint: the tensors as stored; layers of ``modules_to_not_convert`` are float there.
        quantization: ``quantization_config`` or ``quant_config.json``.
        folder: of the checkpoint, for errors.

    Raises:
        InputError: a layout that is not known, or tensors that do not fit what the configuration says.
    """
    version = str(quantization.get("version") or quantization.get("format") or "gemm").lower()
    if version not in ("gemm", "gemv"):
        raise refused(f"the AWQ layout {version!r} can't be read, only gemm and gemv", folder)
    bits = quantization.get("bits", quantization.get("w_bit"))
    block = quantization.get("group_size", quantization.get("q_group_size"))
    if bits != BITS or type(block) is not int or not (block == -1 or block > 0):
        raise refused(f"bits {bits!r} and group_size {block!r} are not {BITS} and a number", folder)
    symmetric = quantization.get("zero_point", True) is False
    build = _gemm if version == "gemm" else _gemv
    return with_weights(checkpoint, PARTS, lambda layer: build(checkpoint, layer, block, symmetric))


class GemmWeight(PackedLinear):
    """One layer's weight in the layout ``gemm``."""

    def integers(self) -> NDArray[np.uint8]:
        """[N, K]."""
        return self._in_order("qweight")

    def zero_points(self) -> NDArray[np.uint8]:
        """[N, G]."""
        return self._in_order("qzeros")

    def scales(self) -> NDArray[Any]:
        """[N, G]."""
        return self.stored("scales").T

    def _in_order(self, part: str) -> NDArray[np.uint8]:
        mixed = unpack_words(self.stored(part), BITS, self.rows)
        return mixed.reshape(len(mixed), -1, PER_WORD)[:, :, PLACES].reshape(len(mixed), -1).T


class GemvWeight(PackedLinear):
    """One layer's weight in the layout ``gemv``; groups are padded to whole words."""

    def integers(self) -> NDArray[np.uint8]:
        """[N, K]."""
        return unpack_words(self.stored("qweight"), BITS, self.columns)

    def zero_points(self) -> NDArray[np.uint8]:
        """[N, G]."""
        return unpack_words(self.stored("qzeros"), BITS, self.columns // self.block)

    def scales(self) -> NDArray[Any]:
        """[N, G]."""
        return self.stored("scales")[:, : self.columns // self.block]


def _gemm(checkpoint: Checkpoint, layer: str, block: int, symmetric: bool) -> GemmWeight:
    packed = required(checkpoint, f"{layer}qweight", "i")
    columns, words = matrix(packed)
    block = block if block > 0 else columns
    if columns % block:
        raise broken(f"groups of {block} do not divide its {columns} columns", packed)
    groups = columns // block
    parts = {
        "qweight": packed,
        "qzeros": required(checkpoint, f"{layer}qzeros", "i", (groups, words)),
        "scales": required(checkpoint, f"{layer}scales", "f", (groups, words * PER_WORD)),
    }
    return GemmWeight(f"{layer}weight", (words * PER_WORD, columns), BITS, block, symmetric, parts)


def _gemv(checkpoint: Checkpoint, layer: str, block: int, symmetric: bool) -> GemvWeight:
    packed = required(checkpoint, f"{layer}qweight", "i")
    rows, words = matrix(packed)
    columns = words * PER_WORD
    block = block if block > 0 else columns
    if columns % block:
        raise broken(f"groups of {block} do not divide its {columns} columns", packed)
    parts = {"qweight": packed, "qzeros": required(checkpoint, f"{layer}qzeros", "i")}
    parts["scales"] = required(checkpoint, f"{layer}scales", "f", (rows, matrix(parts["qzeros"])[1] * PER_WORD))
    if dimensions(parts["qzeros"])[0] != rows or dimensions(parts["scales"])[1] * block < columns:
        raise broken(f"it has no place for {columns // block} groups of {rows} rows", parts["qzeros"])
    return GemvWeight(f"{layer}weight", (rows, columns), BITS, block, symmetric, parts)
