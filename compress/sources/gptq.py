"""GPTQ checkpoints in, as AutoGPTQ and GPTQModel write them.

For a linear layer [N, K] in b bits with G groups (the layout of both packages' ``QuantLinear``): ``qweight`` int32
[K·b/32, N], packed along K; ``qzeros`` int32 [G, ⌈N·b/32⌉], packed along N; ``scales`` [G, N]; ``g_idx`` int32 [K],
the group of each column. In the format ``gptq`` zero points are stored less 1, in ``gptq_v2`` as they are, and in
``gptq_p`` too, where integers lie in planes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from pocketport.compress.checkpoint import Checkpoint
from pocketport.compress.formats.packing import unpack_planes, unpack_words
from pocketport.compress.sources.packed import PackedLinear, broken, matrix, refused, required, with_weights

PARTS = ("qweight", "qzeros", "scales", "g_idx")
BITS = (2, 3, 4, 8)
PLANAR_BITS = (2, 3, 4, 5, 6, 8)
FORMATS = ("gptq", "gptq_v2", "gptq_p")


def gptq_tensors(
    checkpoint: Checkpoint, quantization: Mapping[str, Any], folder: Path
) -> Mapping[str, ir.TensorProtocol]:
    """The tensors by the names of the float model; quantized weights keep their integers and unpack when they are read.

    Args:
        checkpoint: the tensors as stored.
        quantization: ``quantization_config`` or ``quantize_config.json``.
        folder: of the checkpoint, for errors.

    Raises:
        InputError: a layout that is not known, or tensors that do not fit what the configuration says.
    """
    version = quantization.get("checkpoint_format") or quantization.get("format") or "gptq"
    if version not in FORMATS or quantization.get("is_marlin_format"):
        raise refused(f"the GPTQ layout {version!r} can't be read, only {' and '.join(FORMATS)}", folder)
    bits, block, symmetric = (quantization.get(key) for key in ("bits", "group_size", "sym"))
    known = PLANAR_BITS if version == "gptq_p" else BITS
    if bits not in known or type(bits) is not int:
        raise refused(f"bits {bits!r} are not one of {', '.join(map(str, known))}", folder)
    if type(block) is not int or not (block == -1 or block > 0) or not isinstance(symmetric, bool):
        raise refused(f"group_size {block!r} and sym {symmetric!r} are not a number and true or false", folder)
    mixed = bool(quantization.get("dynamic"))
    form = _Form(bits, block, symmetric, version == "gptq", version == "gptq_p", mixed, known)
    tensors = with_weights(checkpoint, PARTS, lambda layer: _layer(checkpoint, layer, form))
    return _without_idle_biases(tensors)


@dataclass(frozen=True)
class _Form:
    """What the configuration says of every layer.

    Attributes:
        bits, block, symmetric: as `PackedLinear`; a block of −1 is as long as a row.
        less_one: zero points are stored less 1.
        planar: integers lie in planes.
        mixed: there are exceptions (GPTQModel's ``dynamic``): each layer's shapes tell its bits and block.
        known: the bits that layers may have.
    """

    bits: int
    block: int
    symmetric: bool
    less_one: bool
    planar: bool
    mixed: bool
    known: tuple[int, ...]


class GptqWeight(PackedLinear):
    """One layer's weight."""

    less_one: bool
    planar: bool

    def integers(self) -> NDArray[np.uint8]:
        """[N, K]."""
        words = np.ascontiguousarray(self.stored("qweight").T)
        return unpack_planes(words, self.bits) if self.planar else unpack_words(words, self.bits, self.columns)

    def zero_points(self) -> NDArray[np.uint8]:
        """[N, G].

        The 1 is added to whole words, as GPTQModel's ``convert_gptq_v1_to_v2_format`` does and its writer undoes, so that a
        zero point of 0 borrows from its neighbour and gives it back; integers of 3 bits are added to one by one.
        """
        words = self.stored("qzeros")
        if self.planar:
            return unpack_planes(words, self.bits).T
        if not self.less_one:
            return unpack_words(words, self.bits, self.rows).T
        if self.bits == 3:
            return ((unpack_words(words, self.bits, self.rows) + np.uint8(1)) & np.uint8(7)).T
        ones = np.uint32(sum(1 << place for place in range(0, 32, self.bits)))
        return unpack_words(words.view(np.uint32) + ones, self.bits, self.rows).T

    def scales(self) -> NDArray[Any]:
        """[N, G]."""
        return self.stored("scales").T


def _layer(checkpoint: Checkpoint, layer: str, form: _Form) -> GptqWeight:
    """One layer, its tensors' shapes checked against each other and against the configuration."""
    packed = required(checkpoint, f"{layer}qweight", "i")
    words, rows = matrix(packed)
    parts = {"qweight": packed}
    columns = words * 32 // form.bits
    if f"{layer}g_idx" in checkpoint:
        parts["g_idx"] = required(checkpoint, f"{layer}g_idx", "i")
        columns = parts["g_idx"].size
    bits = words * 32 // columns if form.mixed else form.bits
    if bits not in form.known or columns * bits != words * 32:
        raise broken(f"{words} words hold no {columns} integers of {bits} bits", packed)
    parts["scales"] = required(checkpoint, f"{layer}scales", "f")
    groups, _ = matrix(parts["scales"])
    block = form.block if form.block > 0 else columns
    if form.mixed and not columns % groups:
        block = columns // groups
    parts["qzeros"] = required(checkpoint, f"{layer}qzeros", "i", (groups, -(-rows * bits // 32)))
    required(checkpoint, f"{layer}scales", "f", (-(-columns // block), rows))
    weight = GptqWeight(f"{layer}weight", (rows, columns), bits, block, form.symmetric, parts)
    weight.less_one, weight.planar = form.less_one, form.planar
    return weight


def _without_idle_biases(tensors: dict[str, ir.TensorProtocol]) -> dict[str, ir.TensorProtocol]:
    """Older AutoGPTQ gave every layer a bias of zeros: those of a kind of layer that are all zero are dropped."""
    kinds: dict[str, list[str]] = {}
    for name, tensor in tensors.items():
        bias = f"{name.removesuffix('weight')}bias"
        if isinstance(tensor, GptqWeight) and bias in tensors:
            kinds.setdefault(name.split(".")[-2], []).append(bias)
    for biases in kinds.values():
        if not any(tensors[bias].numpy().any() for bias in biases):
            for bias in biases:
                del tensors[bias]
    return tensors
