"""compressed-tensors checkpoints in: the ``pack-quantized`` layout, as llm-compressor writes it.

See `pocketport.compress.formats.compressed_tensors` for the tensors; a layer whose columns were put in the order of their
activations has ``weight_g_idx`` int32 [K], the group of each column, too.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from pocketport.compress.checkpoint import Checkpoint
from pocketport.compress.formats.packing import unpack_words
from pocketport.compress.sources.packed import PackedLinear, broken, matrix, refused, required, with_weights

PARTS = ("weight_packed", "weight_scale", "weight_zero_point", "weight_shape", "weight_g_idx")
LAYOUT = "pack-quantized"
BITS = (2, 4, 8)  # others were packed in another way by older versions of the package


def compressed_tensors(
    checkpoint: Checkpoint, quantization: Mapping[str, Any], folder: Path
) -> Mapping[str, ir.TensorProtocol]:
    """The tensors by the names of the float model; quantized weights keep their integers and unpack when they are read.

    Args:
        checkpoint: the tensors as stored.
        quantization: ``quantization_config``.
        folder: of the checkpoint, for errors.

    Raises:
        InputError: a layout that is not known, or tensors that do not fit what the configuration says.
    """
    if quantization.get("format") != LAYOUT:
        raise refused(f"the layout {quantization.get('format')!r} can't be read, only {LAYOUT}", folder)
    groups = quantization.get("config_groups")
    if not isinstance(groups, dict) or not groups:
        raise refused("it has no config_groups", folder)
    known = set()
    for group in groups.values():
        weights = group.get("weights") if isinstance(group, dict) else None
        if not isinstance(weights, dict) or weights.get("num_bits") not in BITS or weights.get("type") != "int":
            raise refused(f"weights other than integers of {', '.join(map(str, BITS))} bits can't be read", folder)
        if group.get("input_activations") is not None:
            raise refused("its activations are quantized too", folder)
        known.add(int(weights["num_bits"]))
    return with_weights(checkpoint, PARTS, lambda layer: _layer(checkpoint, layer, known))


class CompressedWeight(PackedLinear):
    """One layer's weight."""

    def integers(self) -> NDArray[np.uint8]:
        """[N, K]."""
        return unpack_words(self.stored("weight_packed"), self.bits, self.columns)

    def zero_points(self) -> NDArray[np.uint8]:
        """[N, G]."""
        if self.symmetric:
            return np.full(self.scales().shape, 2 ** (self.bits - 1), np.uint8)
        return unpack_words(np.ascontiguousarray(self.stored("weight_zero_point").T), self.bits, self.rows).T

    def scales(self) -> NDArray[Any]:
        """[N, G]."""
        return self.stored("weight_scale")


def _layer(checkpoint: Checkpoint, layer: str, known: set[int]) -> CompressedWeight:
    """One layer; its bits and groups follow from its tensors' shapes."""
    packed = required(checkpoint, f"{layer}weight_packed", "i")
    rows, words = matrix(packed)
    shape = required(checkpoint, f"{layer}weight_shape", "n", (2,))
    n, columns = (int(size) for size in shape.mapped())
    fitting = [bits for bits in known if n == rows and columns > 0 and -(-columns * bits // 32) == words]
    if len(fitting) != 1:
        raise broken(f"it says {n} × {columns}, for which {rows} × {words} words are the wrong size", shape)
    (bits,) = fitting
    scale = required(checkpoint, f"{layer}weight_scale", "f")
    groups = matrix(scale)[1]
    if columns % groups:
        raise broken(f"{groups} groups do not divide {columns} columns", scale)
    parts = {"weight_packed": packed, "weight_scale": required(checkpoint, scale.name or "", "f", (rows, groups))}
    symmetric = f"{layer}weight_zero_point" not in checkpoint
    if not symmetric:
        expected = (-(-rows * bits // 32), groups)
        parts["weight_zero_point"] = required(checkpoint, f"{layer}weight_zero_point", "i", expected)
    if f"{layer}weight_g_idx" in checkpoint:
        parts["g_idx"] = required(checkpoint, f"{layer}weight_g_idx", "i", (columns,))
    return CompressedWeight(f"{layer}weight", (rows, columns), bits, columns // groups, symmetric, parts)
