"""A product with a constant matrix and the bias added to it are one linear layer."""

import math

import numpy as np
import onnx_ir as ir

from pocketport.compress.graph import constant, dimensions, shape_of, static_shape
from pocketport.compress.passes.base import Pass, PassResult
from pocketport.compress.passes.rewriting import add_initializer
from pocketport.compress.passes.rows import as_rows, replace_on_rows
from pocketport.compress.structure import FLOATS


class FuseLinear(Pass):
    """``MatMul(x, W) + b`` → Gemm on a matrix with a bias of one number a channel, between Reshapes where x has another rank.

    The weight stays as it lies in the file. The bias becomes the layer's own: as integers, its scale is that of the layer's products.
    """

    def rewrite(self, graph: ir.Model) -> PassResult:
        """One sweep; a product that others read too, or that is an output, keeps its bias apart."""
        modified = False
        for total in list(graph.graph):
            found = _biased(total)
            if found is not None:
                _fuse(graph.graph, total, *found)
                modified = True
        return PassResult(graph, modified)


def _biased(total: ir.Node) -> tuple[ir.Node, ir.Value] | None:
    """A product with a constant matrix to which `total` alone adds a constant for the channels, and that constant."""
    if total.op_type != "Add" or total.domain or static_shape(total.outputs[0]) is None:
        return None
    for value, bias in (total.inputs, total.inputs[::-1]):
        product = value.producer() if value is not None else None
        if value is None or bias is None or product is None or product.op_type != "MatMul" or product.domain:
            continue
        x, weight = product.inputs
        matrix = None if weight is None else ir.convenience.get_const_tensor(weight)
        if matrix is None or len(matrix.shape) != 2 or matrix.dtype not in FLOATS:
            continue
        known = x is not None and len(static_shape(x) or ()) >= 2
        if known and len(value.uses()) == 1 and not value.is_graph_output() and _is_bias(bias, dimensions(matrix)[1]):
            return product, bias
    return None


def _is_bias(value: ir.Value, channels: int) -> bool:
    """Whether a constant is one number for all channels, or one for each along the last dimension."""
    tensor = ir.convenience.get_const_tensor(value)
    shape = () if tensor is None else dimensions(tensor)
    return tensor is not None and (math.prod(shape) == 1 or shape[-1] == math.prod(shape) == channels)


def _fuse(graph: ir.Graph, total: ir.Node, product: ir.Node, bias: ir.Value) -> None:
    """Put the layer in the place of `total`, under the name of `product`, by which recipes know the weight."""
    name, channels = total.outputs[0].name, shape_of(total.outputs[0])[-1:]
    if len(bias.uses()) > 1 or shape_of(bias) != channels:
        vector = np.broadcast_to(np.asarray(constant(bias)).reshape(-1), channels)
        bias = add_initializer(graph, f"{name}.bias", np.array(vector))
    layer = ir.node("Gemm", [as_rows(product, 0), product.inputs[1], bias], name=product.name or name)
    replace_on_rows(total, layer)
    graph.remove(product, safe=True)
