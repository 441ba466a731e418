"""Fold per-channel scales and shifts into the convolution or linear layer before them."""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from pocketport.compress.graph import constant, static_shape
from pocketport.compress.passes.base import Pass, PassResult
from pocketport.compress.passes.rewriting import add_initializer, replace_node, replace_value


@dataclass(frozen=True)
class _Affine:
    """y = x·scale + shift along axis 1; float64 [C] or [1]."""

    scale: NDArray[np.float64]
    shift: NDArray[np.float64]


class FoldAffine(Pass):
    """Conv, ConvTranspose or Gemm, then BatchNormalization, Mul, Add, Sub or Div by constants: one layer.

    A BatchNormalization that follows none of them becomes a Mul and an Add. The arithmetic is float64.
    """

    def rewrite(self, graph: ir.Model) -> PassResult:
        """One sweep in topological order, so that chains collapse into their layer."""
        modified = False
        for node in list(graph.graph):
            found = _affine(node)
            if found is None:
                continue
            source, affine = found
            layer = source.producer()
            if layer is not None and _can_absorb(layer, source):
                _absorb(graph.graph, layer, affine)
                replace_value(node.outputs[0], source)
                graph.graph.remove(node, safe=True)
            elif node.op_type == "BatchNormalization":
                _expand(graph.graph, node, source, affine)
            else:
                continue
            modified = True
        return PassResult(graph, modified)


def _affine(node: ir.Node) -> tuple[ir.Value, _Affine] | None:
    """The data input and the affine map of a node that is one, else None."""
    if node.domain or any(o.uses() for o in node.outputs[1:]):
        return None
    one, zero = np.ones(1), np.zeros(1)
    if node.op_type == "BatchNormalization":
        parameters = [constant(v) for v in node.inputs[1:5]]
        if node.inputs[0] is None or any(p is None for p in parameters):
            return None
        gamma, beta, mean, variance = (np.asarray(p, np.float64) for p in parameters)
        scale = gamma / np.sqrt(variance + node.attributes.get_float("epsilon", 1e-5))
        return node.inputs[0], _Affine(scale, beta - mean * scale)
    if node.op_type not in ("Mul", "Add", "Sub", "Div"):
        return None
    first, second = node.inputs
    if node.op_type in ("Mul", "Add") and constant(first) is not None:
        first, second = second, first
    array = constant(second)
    if first is None or array is None or constant(first) is not None:
        return None
    vector = _per_channel(array, first)
    if vector is None:
        return None
    if node.op_type in ("Mul", "Div"):
        return first, _Affine(vector if node.op_type == "Mul" else 1 / vector, zero)
    return first, _Affine(one, vector if node.op_type == "Add" else -vector)


def _per_channel(array: NDArray[np.generic], data: ir.Value) -> NDArray[np.float64] | None:
    """`array` as [C] or [1], if that is how it broadcasts against `data` [N, C, ...]."""
    shape = static_shape(data)
    if array.size == 1:
        return np.asarray(array, np.float64).reshape(1) if shape is not None and array.ndim <= len(shape) else None
    if shape is None or len(shape) < 2 or array.ndim > len(shape) or array.size != shape[1]:
        return None
    padded = (1,) * (len(shape) - array.ndim) + array.shape
    return np.asarray(array, np.float64).reshape(-1) if padded[1] == shape[1] else None


def _can_absorb(layer: ir.Node, output: ir.Value) -> bool:
    if layer.op_type == "Gemm":  # its bias may be of any shape that broadcasts, and scaled
        vector = all(v is None or static_shape(v) == (static_shape(output) or ())[1:] for v in layer.inputs[2:])
        known = vector and layer.attributes.get_float("beta", 1.0) == 1.0
    else:
        known = layer.op_type in ("Conv", "ConvTranspose")
    return (
        known
        and not layer.domain
        and len(output.uses()) == 1
        and not output.is_graph_output()
        and all(constant(v) is not None for v in layer.inputs[1:] if v is not None)
    )


def _absorb(graph: ir.Graph, layer: ir.Node, affine: _Affine) -> None:
    """Rewrite the layer's weight and bias, under their own names if nobody else reads them."""
    kernel = np.asarray(constant(layer.inputs[1]), np.float64)
    bias_value = layer.inputs[2] if len(layer.inputs) > 2 else None
    groups = layer.attributes.get_int("group", 1)
    # Weights are [C_out, C_in/groups, ...], a ConvTranspose's [C_in, C_out/groups, ...], a Gemm's [C_in, C_out] or its
    # transpose.
    rows = layer.op_type == "Conv" or bool(layer.attributes.get_int("transB", 0))
    channels = kernel.shape[0] if rows else kernel.shape[1] * groups
    scale = np.broadcast_to(affine.scale, channels)
    bias = np.zeros(channels) if bias_value is None else np.asarray(constant(bias_value), np.float64)
    if not rows:
        per_group = scale.reshape(groups, 1, -1, *[1] * (kernel.ndim - 2))
        kernel = (kernel.reshape(groups, -1, *kernel.shape[1:]) * per_group).reshape(kernel.shape)
    else:
        kernel = kernel * scale.reshape(-1, *[1] * (kernel.ndim - 1))
    _set_weight(graph, layer, 1, kernel)
    _set_weight(graph, layer, 2, bias * scale + affine.shift)


def _set_weight(graph: ir.Graph, node: ir.Node, index: int, array: NDArray[np.float64]) -> None:
    """Give a node's input these numbers: in place if nobody else reads the initializer, else as a new one."""
    if index == len(node.inputs):
        node.resize_inputs(index + 1)
    old = node.inputs[index]
    numbers = array.astype(np.float32)
    if old is not None and old.is_initializer() and len(old.uses()) == 1:
        old.const_value = ir.Tensor(numbers, name=old.name)
    else:
        name = f"{node.outputs[0].name}.{'weight' if index == 1 else 'bias'}"
        node.replace_input_with(index, add_initializer(graph, name, numbers))


def _expand(graph: ir.Graph, node: ir.Node, source: ir.Value, affine: _Affine) -> None:
    """A Mul and an Add in the place of a BatchNormalization."""
    shape, name = static_shape(source), str(node.outputs[0].name)
    broadcast = (-1, *[1] * (len(shape) - 2 if shape is not None else 2))
    scale, shift = (v.astype(np.float32).reshape(broadcast) for v in (affine.scale, affine.shift))
    product = ir.node("Mul", [source, add_initializer(graph, f"{name}.scale", scale)], name=f"{name}.scaled")
    product.outputs[0].name = f"{name}.scaled"
    product.outputs[0].shape, product.outputs[0].type = node.outputs[0].shape, node.outputs[0].type
    graph.insert_before(node, product)
    shift_value = add_initializer(graph, f"{name}.shift", shift)
    replace_node(graph, node, ir.node("Add", [product.outputs[0], shift_value], name=node.name))
