"""What a graph computes and moves, from its shapes alone: MACs, bytes read and written, ops an NPU would run."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from pocketport.compress.graph import inferred, shape_of
from pocketport.profiles.macs import macs
from pocketport.profiles.tensors import TensorSizes

QDQ = frozenset({"QuantizeLinear", "DequantizeLinear"})
# The compilers run none of these by themselves: views are free, activations ride on their producer.
VIEWS = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Dropout", "Constant", "Shape"})
ACTIVATIONS = frozenset({"Relu", "Clip", "LeakyRelu", "PRelu", "BatchNormalization"})
LOOKUPS = frozenset({"Gather", "GatherElements", "GatherND"})


@dataclass(frozen=True)
class NodeCost:
    """One node's work, once through.

    Attributes:
        name: the node's name, or its first output's.
        op_type: ONNX op.
        macs: multiply-accumulates of convolutions and matrix products; 0 for all other ops.
        weight_bytes: bytes of constants that are read, at the width they are stored with (scales included; of a
            lookup table only the rows looked up).
        read_bytes: bytes of activations read, at their encoded width.
        written_bytes: bytes of activations written.
        folded: the compilers merge it into a neighbour (activation, view, half of SiLU, ...): no op of its own.
    """

    name: str
    op_type: str
    macs: int
    weight_bytes: int
    read_bytes: int
    written_bytes: int
    folded: bool


@dataclass(frozen=True)
class ComponentCost:
    """Work of one graph, once through.

    Attributes:
        parameters: elements of the weights (quantization parameters and integer constants not counted).
        macs: multiply-accumulates.
        weight_bytes: all constants as stored; what is resident and what ships.
        streamed_bytes: constants read in one run; less than `weight_bytes` where tables are looked up.
        activation_bytes: activations read and written by the ops that are not folded.
        io_bytes: the graph's inputs and outputs (a KV cache among them).
        ops: ops that an NPU compiler would be left with.
        per_op: the nodes, in the schedule's order; quantization nodes are not among them.
    """

    parameters: int
    macs: int
    weight_bytes: int
    streamed_bytes: int
    activation_bytes: int
    io_bytes: int
    ops: int
    per_op: tuple[NodeCost, ...]


def component_cost(model: ir.Model, *, float_bits: int = 16) -> ComponentCost:
    """Cost of a float or QDQ graph with static shapes.

    Args:
        model: opset ≥ 13, any quantization that the pivot has.
        float_bits: width in which float tensors are kept on the device: 16 on NPUs, 32 on x86 unless it says bf16.

    Raises:
        InputError: a shape that the cost depends on is not static.
    """
    graph = inferred(model).graph
    sizes = TensorSizes(graph, float_bits)
    folded = frozenset(folded_nodes(graph, sizes))
    per_op = tuple(
        NodeCost(
            name=node.name or str(node.outputs[0].name),
            op_type=node.op_type,
            macs=macs(node),
            weight_bytes=_streamed(node, sizes),
            read_bytes=sum(sizes.bytes(v) for v in node.inputs if v is not None and not sizes.is_constant(v)),
            written_bytes=sum(sizes.bytes(v) for v in node.outputs if v.name),
            folded=node in folded,
        )
        for node in graph
        if node.op_type not in QDQ and not sizes.is_constant(node.outputs[0])
    )
    kept = [op for op in per_op if not op.folded]
    return ComponentCost(
        parameters=sum(math.prod(shape_of(v)) for v in _weights(graph, sizes)),
        macs=sum(op.macs for op in per_op),
        weight_bytes=sum(sizes.stored_bytes(v) for v in _stored(graph)),
        streamed_bytes=sum(op.weight_bytes for op in per_op),
        activation_bytes=sum(op.read_bytes + op.written_bytes for op in kept),
        io_bytes=sum(sizes.bytes(v) for v in (*graph.inputs, *graph.outputs)),
        ops=len(kept),
        per_op=per_op,
    )


def _stored(graph: ir.Graph) -> Iterator[ir.Value]:
    """Everything that the file holds: initializers and Constant nodes."""
    yield from graph.initializers.values()
    yield from (node.outputs[0] for node in graph if node.op_type == "Constant")


def _weights(graph: ir.Graph, sizes: TensorSizes) -> Iterator[ir.Value]:
    """What was learned: no scales and zero points, no tables of palettes, no shapes and axes."""
    of_palettes = {v for p in sizes.palettes.values() for v in (p.table, p.offsets)}
    for value in _stored(graph):
        uses = list(value.uses())
        quantization = uses and all(node.op_type in QDQ and index > 0 for node, index in uses)
        quantization = quantization or value in of_palettes
        index = value.dtype in (ir.DataType.INT64, ir.DataType.BOOL)
        if not quantization and not index:
            yield value


def _streamed(node: ir.Node, sizes: TensorSizes) -> int:
    """Constant bytes that one run of `node` reads, with the scales of the DequantizeLinear before them, or the tables."""
    total = 0
    for index, value in enumerate(node.inputs):
        if value is None or not sizes.is_constant(value):
            continue
        if index == 0 and node.op_type in LOOKUPS:
            total += (math.prod(shape_of(node.outputs[0])) * sizes.bits(value) + 7) // 8
            continue
        total += sizes.bytes(value)
        producer = value.producer()
        if producer is not None and producer.op_type == "DequantizeLinear":
            total += sum(sizes.bytes(v) for v in producer.inputs[1:] if v is not None)
        if value in sizes.palettes:
            total += sizes.stored_bytes(sizes.palettes[value].table)
    return total


def folded_nodes(graph: ir.Graph, sizes: TensorSizes) -> Iterator[ir.Node]:
    """Nodes that vanish into another: views, activations, scalings, and all but one op of a decomposed SiLU or GELU."""
    for node in graph:
        if (
            node.op_type in VIEWS
            or node.op_type in ACTIVATIONS
            or (node.op_type in ("Sigmoid", "HardSigmoid") and _is_gate(node))
        ):
            yield node
        elif node.op_type == "Erf":
            yield from _around_erf(node)
        elif node.op_type in ("Mul", "Div") and _is_scaling(node, sizes):
            yield node


def _readers(value: ir.Value) -> list[ir.Node]:
    """Nodes that read `value`, looking through Q/DQ pairs."""
    found: list[ir.Node] = []
    for node, _ in value.uses():
        found += _readers(node.outputs[0]) if node.op_type in QDQ else [node]
    return found


def _source(value: ir.Value | None) -> ir.Value | None:
    """The value before any Q/DQ pairs."""
    while value is not None:
        producer = value.producer()
        if producer is None or producer.op_type not in QDQ:
            break
        value = producer.inputs[0]
    return value


def _is_gate(node: ir.Node) -> bool:
    """x · sigmoid(x): SiLU or HardSwish, one kernel everywhere."""
    readers = _readers(node.outputs[0])
    own = _source(node.inputs[0])
    return len(readers) == 1 and readers[0].op_type == "Mul" and any(_source(v) is own for v in readers[0].inputs)


def _is_scaling(node: ir.Node, sizes: TensorSizes) -> bool:
    """A product with or a division by one constant number, which goes into the neighbour's scale."""
    return any(v is not None and sizes.is_constant(v) and math.prod(shape_of(v)) == 1 for v in node.inputs)


def _around_erf(node: ir.Node) -> Iterator[ir.Node]:
    """Exact GELU written out, x/√2 → Erf → +1 → (·½) → ·x: what follows Erf, which stands for the whole."""
    readers = _readers(node.outputs[0])
    for op_type in ("Add", "Mul", "Mul"):
        if len(readers) != 1 or readers[0].op_type != op_type:
            return
        yield readers[0]
        readers = _readers(readers[0].outputs[0])
