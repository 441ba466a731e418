"""Compute now what does not depend on the input: nodes over constants, and shapes that are static."""

import math

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from pocketport.compress.graph import constant, static_shape
from pocketport.compress.passes.base import Pass, PassResult
from pocketport.compress.passes.rewriting import add_initializer

# Folding never makes the model larger than this per tensor (bytes): an Expand or a table stays an op.
MAX_FOLDED_BYTES = 1 << 20
MAX_LOOKED_UP_BYTES = 32 << 20  # of what constant indices look up: biases of attention by relative place
LARGEST_ELEMENT = 8  # bytes
GROWING_OPS = frozenset(  # a few numbers say how large their outputs are
    {"ConstantOfShape", "Expand", "Tile", "Range", "Pad", "OneHot", "Resize", "Upsample", "EyeLike",
     "HannWindow", "HammingWindow", "BlackmanWindow", "MelWeightMatrix", "Gather", "GatherND", "CenterCropPad"}
)  # fmt: skip
LOOKUPS = frozenset({"Gather", "GatherND"})
RANDOM_OPS = frozenset(
    {"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Multinomial", "Bernoulli"}
)
WEIGHT_OPS = frozenset(
    {"DequantizeLinear", "QuantizeLinear"}
)  # they carry encodings: the numbers alone would lose them


class GatherElements(OpRun):  # type: ignore[misc]
    """The op as the standard has it; onnx's own evaluator fails on axes of more than 64."""

    op_domain = ""

    def _run(self, data: NDArray[np.generic], indices: NDArray[np.int64], axis: int = 0) -> tuple[NDArray[np.generic]]:
        rows = tuple(slice(None) if d == axis % data.ndim else slice(n) for d, n in enumerate(indices.shape))
        return (np.take_along_axis(data[rows], indices, axis),)


class FoldConstants(Pass):
    """Replace nodes whose outputs are known by initializers that carry the outputs' names."""

    def rewrite(self, graph: ir.Model) -> PassResult:
        """Fold until a whole sweep, in topological order, is done; shapes must have been inferred before."""
        modified = False
        for node in list(graph.graph):
            folded = _known_outputs(node, graph)
            if folded is None:
                continue
            for output, array in zip(node.outputs, folded, strict=True):
                name, output.name = str(output.name), f"{output.name}.unused"
                output.replace_all_uses_with(add_initializer(graph.graph, name, array))
            graph.graph.remove(node, safe=True)
            modified = True
        return PassResult(graph, modified)


def _known_outputs(node: ir.Node, graph: ir.Model) -> list[NDArray[np.generic]] | None:
    """The node's outputs, if they do not depend on the graph's inputs; None otherwise."""
    if node.domain or node.op_type in RANDOM_OPS | WEIGHT_OPS or any(o.is_graph_output() for o in node.outputs):
        return None
    if any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values()):
        return None
    shape = static_shape(node.inputs[0]) if node.inputs and node.inputs[0] is not None else None
    if node.op_type == "Shape" and shape is not None:
        start, end = node.attributes.get_int("start", 0), node.attributes.get_int("end", len(shape))
        return [np.array(shape[start:end], np.int64)]
    if node.op_type == "Size" and shape is not None:
        return [np.array(np.prod(shape), np.int64)]
    inputs = {v.name: constant(v) for v in node.inputs if v is not None}
    if any(array is None for array in inputs.values()):
        return None
    read = sum(array.nbytes for array in inputs.values() if array is not None)
    most = max(read, MAX_LOOKED_UP_BYTES if node.op_type in LOOKUPS else MAX_FOLDED_BYTES)
    if node.op_type in GROWING_OPS and not _is_small(node, most):
        return None
    proto = onnx.helper.make_graph(
        [ir.to_proto(node)], "folding",
        [onnx.helper.make_empty_tensor_value_info(str(n)) for n in inputs],
        [onnx.helper.make_empty_tensor_value_info(str(o.name)) for o in node.outputs],
    )  # fmt: skip
    opsets = [onnx.helper.make_opsetid("", graph.graph.opset_imports[""])]
    folding = onnx.helper.make_model(proto, opset_imports=opsets)
    results = ReferenceEvaluator(folding, new_ops=[GatherElements]).run(None, inputs)
    arrays = [np.asarray(result) for result in results]
    return arrays if sum(a.nbytes for a in arrays) <= most else None


def _is_small(node: ir.Node, most: int) -> bool:
    """Whether the outputs are known to have at most so many bytes."""
    shapes = [static_shape(output) for output in node.outputs if output.name]
    return all(shape is not None and math.prod(shape) * LARGEST_ELEMENT <= most for shape in shapes)
