"""Features out of a graph, beside `features` so that whoever has them already needs no graph library."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import onnx_ir as ir

from pocketport.compress.graph import inferred, shape_of
from pocketport.profiles.cost import QDQ, folded_nodes
from pocketport.profiles.macs import macs
from pocketport.profiles.prediction.deployed import normalizes, shifted
from pocketport.profiles.prediction.features import COLOURS, GraphFeatures, Kind, OpFeatures
from pocketport.profiles.tensors import TensorSizes

_KINDS: dict[Kind, tuple[str, ...]] = {
    Kind.RECURRENT: ("LSTM", "GRU", "RNN"),
    Kind.MATMUL: ("Einsum", "Attention"),
    Kind.SOFTMAX: ("Softmax", "LogSoftmax"),
    Kind.NORM: (
        "LayerNormalization", "RMSNormalization", "InstanceNormalization", "GroupNormalization", "LpNormalization",
        "SimplifiedLayerNormalization", "LRN",
    ),
    Kind.ACTIVATION: (
        "Gelu", "Erf", "Sigmoid", "HardSigmoid", "HardSwish", "Tanh", "Swish", "Mish", "Softplus", "Elu", "Selu", "Exp",
        "Log", "Sqrt", "Reciprocal", "Pow", "Sin", "Cos", "Relu", "Clip", "LeakyRelu", "PRelu",
    ),
    Kind.ELEMENTWISE: (
        "Add", "Sub", "Mul", "Div", "Max", "Min", "Where", "Equal", "Greater", "Less", "GreaterOrEqual", "LessOrEqual",
        "And", "Or", "Not", "Neg", "Abs", "Floor", "Ceil", "Round", "Sign", "Cast", "Mod", "Sum", "BatchNormalization",
    ),
    Kind.POOL: ("MaxPool", "AveragePool", "LpPool"),
    Kind.REDUCE: (
        "ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL2", "ReduceProd", "ReduceSumSquare", "GlobalAveragePool",
        "GlobalMaxPool", "ArgMax", "ArgMin",
    ),
    Kind.RESIZE: ("Resize", "Upsample"),
    Kind.MOVE: (
        "Transpose", "Concat", "Split", "Slice", "Pad", "DepthToSpace", "SpaceToDepth", "Tile", "Expand", "Reshape",
        "Flatten", "Squeeze", "Unsqueeze", "Identity",
    ),
    Kind.GATHER: ("Gather", "GatherElements", "GatherND", "OneHot"),
}  # fmt: skip
LAST, FIRST = (0, 2, 3, 1), (0, 3, 1, 2)  # where a picture's channels go
# Means over windows that lie side by side have integer kernels; where they overlap: size of a square one → widest stride for which the HTP compiler (2.51) has one. All others
# have a plain one, without a cost in its estimate.
OVERLAPPING = {3: 2, 5: 3, 6: 2, 7: 2}
RESHAPES = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze"})
PRODUCTS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
KIND_OF: dict[str, Kind] = {op: kind for kind, ops in _KINDS.items() for op in ops}


def graph_features(model: ir.Model, *, plain_pools: bool = True) -> GraphFeatures:
    """Features of a float or QDQ graph with static shapes, as `ingest` gives it, and of what its deployment adds (see `deployed`).

    Args:
        model: the graph.
        plain_pools: whether it keeps means that have no integer kernel; False for what a backend lowers otherwise.

    Raises:
        InputError: a shape is not static.
    """
    graph = inferred(model).graph
    sizes = TensorSizes(graph, 16)
    folded = frozenset(folded_nodes(graph, sizes))
    ops = tuple(_features(node, sizes) for node in _kept(graph, sizes, folded))
    if not plain_pools:
        ops = tuple(replace(op, kind=Kind.POOL) if op.kind is Kind.PLAIN_POOL else op for op in ops)
    return whole(ops, [shape_of(v) for v in graph.inputs], [shape_of(v) for v in graph.outputs])


def whole(
    ops: Sequence[OpFeatures], inputs: Sequence[tuple[int, ...]], outputs: Sequence[tuple[int, ...]]
) -> GraphFeatures:
    """Features of a graph of `ops` with inputs and outputs of these shapes; pictures that a deployment normalizes are."""
    listed = list(ops)
    for shape in inputs:
        reader = next((op for op in ops if shape in op.inputs), None)
        if reader is not None and reader.op == "Conv" and normalizes(shape, outputs):
            listed[:0] = [OpFeatures(op, Kind.ELEMENTWISE, 0, COLOURS, (shape,), shape) for op in ("Sub", "Div")]
    return GraphFeatures(tuple(listed), sum(math.prod(shape) for shape in (*inputs, *outputs)))


def _kept(graph: ir.Graph, sizes: TensorSizes, folded: frozenset[ir.Node]) -> Iterator[ir.Node]:
    for node in graph:
        if node.op_type in QDQ or sizes.is_constant(node.outputs[0]):
            continue
        if _is_bias(node, sizes) or _is_shift(node) or _is_layout(node):
            continue
        if node not in folded or (node.op_type == "BatchNormalization" and not _follows_product(node)):
            yield node


def _is_bias(node: ir.Node, sizes: TensorSizes) -> bool:
    """A constant vector added to a product with constants, as exporters write linear layers of more than two dimensions."""
    if node.op_type != "Add":
        return False
    for value, other in (node.inputs, node.inputs[::-1]):
        producer = value.producer() if value is not None else None
        if producer is not None and producer.op_type == "MatMul" and other is not None and sizes.is_constant(other):
            return sizes.is_constant(producer.inputs[1]) if producer.inputs[1] is not None else False
    return False


def _is_layout(node: ir.Node) -> bool:
    """Where a file's channels change places but a chip's don't: its pictures have them last. Keys that are turned, after a Reshape, are none."""
    if node.op_type != "Transpose":
        return False
    turn, producer = tuple(node.attributes.get_ints("perm", ())), node.inputs[0].producer() if node.inputs[0] else None
    return turn == FIRST or (turn == LAST and (producer is None or producer.op_type not in RESHAPES))


def _is_shift(node: ir.Node) -> bool:
    """The second half of a batch normalization that ingestion took apart."""
    producer = node.inputs[0].producer() if node.op_type == "Add" and node.inputs[0] is not None else None
    return producer is not None and shifted(producer) is node


def _follows_product(node: ir.Node) -> bool:
    """Whether a normalization can go into the weights before it."""
    producer = node.inputs[0].producer() if node.inputs[0] is not None else None
    return producer is not None and producer.op_type in PRODUCTS


def _is_swish(node: ir.Node) -> bool:
    """x · sigmoid(x), whose sigmoid was folded: one kernel of one input."""
    return node.op_type == "Mul" and any(
        gate.op_type in ("Sigmoid", "HardSigmoid") and gate.inputs[0] in node.inputs
        for gate in (v.producer() for v in node.inputs if v is not None)
        if gate is not None
    )


def _features(node: ir.Node, sizes: TensorSizes) -> OpFeatures:
    constants = [v for v in node.inputs if v is not None and sizes.is_constant(v)]
    output = shape_of(node.outputs[0])
    table = KIND_OF.get(node.op_type) is Kind.GATHER and node.inputs[0] in constants
    # Shapes, axes and scales are not weights that a run reads.
    weights = (
        math.prod(output)
        if table
        else sum(math.prod(shape_of(v)) for v in constants if v.dtype == ir.DataType.FLOAT or _is_weight(v))
    )
    groups = node.attributes.get_int("group", 1)
    if _is_swish(node):
        return OpFeatures("Swish", Kind.ACTIVATION, 0, 0, (output,), output)
    return OpFeatures(
        op=node.op_type if shifted(node) is None else "BatchNormalization",
        kind=_kind(node, sizes, groups),
        macs=macs(node),
        weights=weights,
        inputs=tuple(shape_of(v) for v in node.inputs if v is not None and not sizes.is_constant(v)),
        output=output,
        window=_window(node),
        groups=groups,
    )


def _is_weight(value: ir.Value) -> bool:
    producer = value.producer()
    return producer is not None and producer.op_type == "DequantizeLinear"


def _window(node: ir.Node) -> int:
    if node.op_type in ("Conv", "ConvTranspose") and node.inputs[1] is not None:
        return math.prod(shape_of(node.inputs[1])[2:])
    return math.prod(node.attributes.get_ints("kernel_shape", (1,)))


def mean_kind(kernel: Sequence[int], strides: Sequence[int], output: Sequence[int]) -> Kind:
    """`Kind.PLAIN_POOL` for means over windows that overlap, or leave gaps, in a way for which there is no integer kernel, `Kind.POOL` for all others.

    Args:
        kernel: sizes of a window.
        strides: from one to the next.
        output: how many there are, along each axis.
    """
    if all(s == k or n == 1 for k, s, n in zip(kernel, strides, output, strict=True)):
        return Kind.POOL
    square = len(set(kernel)) == len(set(strides)) == 1
    return Kind.POOL if square and strides[0] <= OVERLAPPING.get(kernel[0], 0) else Kind.PLAIN_POOL


def _kind(node: ir.Node, sizes: TensorSizes, groups: int) -> Kind:
    if node.op_type in ("Conv", "ConvTranspose"):
        if groups == 1:
            return Kind.POINTWISE if _window(node) == 1 else Kind.CONV
        channels = shape_of(node.inputs[0])[1] if node.inputs[0] is not None else 0
        return Kind.DEPTHWISE if groups == channels else Kind.GROUPED
    if node.op_type in ("MatMul", "Gemm"):
        constant = any(v is not None and sizes.is_constant(v) for v in node.inputs[:2])
        return Kind.LINEAR if constant else Kind.MATMUL
    if node.op_type == "Gather" and node.inputs[1] is not None and sizes.is_constant(node.inputs[1]):
        return Kind.MOVE  # a slice
    if node.op_type == "AveragePool":
        kernel, output = node.attributes.get_ints("kernel_shape", ()), shape_of(node.outputs[0])
        return mean_kind(kernel, node.attributes.get_ints("strides", (1,) * len(kernel)), output[2:])
    return KIND_OF.get(node.op_type, Kind.OTHER)
