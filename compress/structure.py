"""What the operands of an op are to quantization: weights, biases, norms, tables, constants, activations."""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from pocketport.compress.graph import constant

NORM_OPS = frozenset({"LayerNormalization", "RMSNormalization", "InstanceNormalization", "GroupNormalization"})
ELEMENTWISE_OPS = frozenset({"Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Where", "PRelu"})
# Ops whose float constants are data like their other operands (not parameters as Clip's bounds are).
DATA_CONSTANT_OPS = ELEMENTWISE_OPS | {"MatMul", "Concat"}
CLAMP_OPS = frozenset({"Relu", "Clip"})
FUSED_PRODUCERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "Add", "Sub", "Mul"})
# Ops on images, which accelerators keep with channels last; the Transposes around them wander up to a barrier.
IMAGE_OPS = frozenset(
    {
        "AveragePool", "BatchNormalization", "Conv", "ConvTranspose", "DepthToSpace", "GlobalAveragePool",
        "GlobalMaxPool", "InstanceNormalization", "MaxPool", "Resize", "SpaceToDepth",
    }
)  # fmt: skip
LAYOUT_BARRIERS = frozenset({"Reshape", "Flatten", "Gemm", "MatMul", "Gather"})
WIDEST_ROTATION = 512  # channels: no matrix of an online rotation is wider
UNIT_RANGE_OPS = frozenset({"Sigmoid", "HardSigmoid"})  # not Softmax: of many numbers that add up to 1, none is near it


@dataclass(frozen=True)
class WeightOperand:
    """A constant that a node computes with, and how it lies in memory.

    Attributes:
        value: the constant.
        kind: ``linear`` (Gemm, MatMul), ``conv`` or ``table`` (Gather).
        channel_axis: dimension of the output channels (of the rows, for a table).
        input_axis: dimension summed over in a linear layer, which blocks cut; None for the others.
        activation: the node's other operand, whose statistics weigh the error; None for a table.
        bias: the node's bias if it is constant.
    """

    value: ir.Value
    kind: str
    channel_axis: int
    input_axis: int | None
    activation: ir.Value | None
    bias: ir.Value | None


def weight_operand(node: ir.Node) -> WeightOperand | None:
    """The weight that `node` computes with, None if it has none."""
    inputs = [*node.inputs, None, None, None]
    if node.op_type == "Gather":
        table = inputs[0]
        if not _is_weight(table, 2):
            return None
        axis = node.attributes.get_int("axis", 0) or 0
        return WeightOperand(table, "table", 0, None, None, None) if axis == 0 else None  # type: ignore[arg-type]
    if node.op_type not in ("Gemm", "MatMul", "Conv", "ConvTranspose") or not _is_weight(inputs[1], 2):
        return None
    weight, activation, bias = inputs[1], inputs[0], inputs[2]
    assert weight is not None
    if constant(bias) is None or node.op_type == "MatMul":
        bias = None
    if node.op_type in ("Conv", "ConvTranspose"):
        grouped = (node.attributes.get_int("group", 1) or 1) > 1
        # A grouped ConvTranspose repeats its output channels in every group: its input channels tell them apart.
        axis = 1 if node.op_type == "ConvTranspose" and not grouped else 0
        return WeightOperand(weight, "conv", axis, None, activation, bias)
    rank = len(weight.shape or ())
    transposed = node.op_type == "Gemm" and bool(node.attributes.get_int("transB", 0))
    channel, summed = (0, 1) if transposed else (rank - 1, rank - 2)
    return WeightOperand(weight, "linear", channel, summed, activation, bias)


def is_rotation(node: ir.Node) -> bool:
    """Whether a MatMul multiplies by a scaled Hadamard matrix: rows of one magnitude everywhere, orthogonal to each other."""
    if node.op_type != "MatMul":
        return False
    for value in node.inputs:
        shape = () if value is None or not is_constant(value) else tuple(value.shape or ())
        if len(shape) != 2 or shape[0] != shape[1] or not 1 < int(shape[0]) <= WIDEST_ROTATION:  # type: ignore[arg-type]
            continue
        matrix = np.asarray(constant(value), np.float64)
        rows = matrix @ matrix.T
        if np.allclose(np.abs(matrix), np.abs(matrix[0, 0])) and np.allclose(rows, rows[0, 0] * np.eye(len(rows))):
            return True
    return False


def is_product_of_rows(node: ir.Node) -> bool:
    """Whether a weight multiplies rows of the node's input: of linear layers, and patches under a convolution's kernel."""
    operand = weight_operand(node)
    if operand is None or operand.activation is None:
        return False
    if node.op_type == "Conv":
        return node.attributes.get_string("auto_pad", "NOTSET") in ("NOTSET", "VALID")
    rank = len(operand.value.shape or ())
    return node.op_type in ("Gemm", "MatMul") and rank == 2 and not node.attributes.get_int("transA", 0)


def _is_weight(value: ir.Value | None, least_rank: int) -> bool:
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    return tensor is not None and tensor.dtype in FLOATS and len(tensor.shape) >= least_rank


FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16})


def is_float(value: ir.Value) -> bool:
    """Whether the tensor's dtype is a float type."""
    return value.dtype in FLOATS


def is_constant(value: ir.Value) -> bool:
    """Whether the tensor is an initializer or a Constant node's output."""
    return ir.convenience.get_const_tensor(value) is not None


def activations_read(node: ir.Node) -> list[ir.Value]:
    """The float operands of a node that are computed at run time."""
    return [v for v in node.inputs if v is not None and is_float(v) and not is_constant(v)]
