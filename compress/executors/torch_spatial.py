"""Convolutions, pooling and resizing of ONNX in torch, [N, C, *spatial]."""

from collections.abc import Callable, Mapping
from typing import TypeAlias

import onnx_ir as ir
import torch
from torch.nn import functional

from pocketport.errors import InputError

Tensor: TypeAlias = torch.Tensor
Inputs: TypeAlias = list[Tensor]


def padded(node: ir.Node, x: Tensor, fill: float = 0.0) -> Tensor:
    """The input of a sliding window with the node's `pads` around it."""
    spatial = x.dim() - 2
    if (mode := node.attributes.get_string("auto_pad", "NOTSET")) not in ("NOTSET", "VALID"):
        raise InputError(f"auto_pad {mode} has no gradient here", where=f"node {node.name}", fix="export explicit pads")
    pads = ints(node, "pads", (0,) * 2 * spatial)
    if not any(pads):
        return x
    # ONNX has all starts, then all ends; torch wants (start, end) of the last dimension first.
    ends = [pad for axis in reversed(range(spatial)) for pad in (pads[axis], pads[axis + spatial])]
    return functional.pad(x, ends, value=fill)


def ints(node: ir.Node, name: str, default: tuple[int, ...]) -> list[int]:
    """An attribute that is a list of integers."""
    return list(node.attributes.get_ints(name) or default)


def _conv(node: ir.Node, inputs: Inputs) -> Tensor:
    x, weight = inputs[:2]
    ones = (1,) * (x.dim() - 2)
    return torch.convolution(
        padded(node, x), weight, inputs[2] if len(inputs) > 2 else None, ints(node, "strides", ones), [0] * len(ones),
        ints(node, "dilations", ones), False, [0] * len(ones), node.attributes.get_int("group", 1) or 1,
    )  # fmt: skip


def _conv_transpose(node: ir.Node, inputs: Inputs) -> Tensor:
    x, weight = inputs[:2]
    spatial = x.dim() - 2
    ones, zeros = (1,) * spatial, (0,) * spatial
    pads = ints(node, "pads", 2 * zeros)
    extra = ints(node, "output_padding", zeros)
    if node.attributes.get("output_shape") is not None or pads[:spatial] != pads[spatial:]:
        raise InputError("its pads have no gradient here", where=f"node {node.name}", fix="export explicit, even pads")
    return torch.convolution(
        x, weight, inputs[2] if len(inputs) > 2 else None, ints(node, "strides", ones), pads[:spatial],
        ints(node, "dilations", ones), True, extra, node.attributes.get_int("group", 1) or 1,
    )  # fmt: skip


def _windows(node: ir.Node, x: Tensor) -> tuple[Tensor, tuple[int, ...]]:
    """Every window of a pooling node, [N, C, *positions, *kernel], of an input that is padded already."""
    kernel = ints(node, "kernel_shape", ())
    ones = (1,) * len(kernel)
    strides, dilations = ints(node, "strides", ones), ints(node, "dilations", ones)
    if node.attributes.get_int("ceil_mode", 0):
        raise InputError("ceil_mode has no gradient here", where=f"node {node.name}", fix="export it without")
    for axis, (size, stride, dilation) in enumerate(zip(kernel, strides, dilations, strict=True)):
        x = x.unfold(2 + axis, dilation * (size - 1) + 1, stride)[..., ::dilation]
    return x, tuple(range(-len(kernel), 0))


def _average_pool(node: ir.Node, inputs: Inputs) -> Tensor:
    windows, axes = _windows(node, padded(node, inputs[0]))
    if node.attributes.get_int("count_include_pad", 0):
        return windows.mean(axes)
    counted, _ = _windows(node, padded(node, torch.ones_like(inputs[0][:1, :1])))
    return windows.sum(axes) / counted.sum(axes)


def _max_pool(node: ir.Node, inputs: Inputs) -> Tensor:
    windows, axes = _windows(node, padded(node, inputs[0], -torch.inf))
    return windows.amax(axes)


def _global_average_pool(node: ir.Node, inputs: Inputs) -> Tensor:
    return inputs[0].mean(tuple(range(2, inputs[0].dim())), keepdim=True)


def _resize(node: ir.Node, inputs: Inputs) -> Tensor:
    """Repeated pixels: what nearest neighbours are where sizes grow by whole numbers."""
    x = inputs[0]
    sizes = inputs[3].tolist() if len(inputs) > 3 and inputs[3].numel() else None
    factors = inputs[2].tolist() if sizes is None else [n / d for n, d in zip(sizes, x.shape, strict=True)]
    whole = [round(f) for f in factors]
    if node.attributes.get_string("mode", "nearest") != "nearest" or whole != factors:
        raise InputError("only repeated pixels have a gradient here", where=f"node {node.name}", fix="leave it float")
    for axis, factor in enumerate(whole):
        x = x.repeat_interleave(factor, axis) if factor > 1 else x
    return x


SPATIAL_OPS: Mapping[str, Callable[[ir.Node, Inputs], Tensor]] = {
    "AveragePool": _average_pool,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "GlobalAveragePool": _global_average_pool,
    "MaxPool": _max_pool,
    "Resize": _resize,
}
