"""What rounding takes from a layer's weight, given back by two thin matrices beside it.

x·Ŵᵀ becomes x·Ŵᵀ + (x·downᵀ)·upᵀ. Of all products of a rank, up·down is the one that leaves least of the error E = W − Ŵ
in the layer's output, E‖x·(E − up·down)ᵀ‖² (QERA, Zhang et al. 2024, arXiv 2410.06040, theorem 1; LQER, arXiv 2402.02446,
knows the diagonal of Σ xᵀx only): with U the first eigenvectors of E·Σxᵀx·Eᵀ it is U·(Uᵀ·E), so that no root of Σ xᵀx and
no inverse is needed. Both matrices are written in 8 bits, a scale a channel.
"""

from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from pocketport.calibration.encodings import Encoding
from pocketport.compress.graph import static_shape
from pocketport.compress.passes.rewriting import add_initializer, replace_value
from pocketport.compress.planning.plan import TensorPlan
from pocketport.compress.structure import WeightOperand
from pocketport.errors import UsageError

Matrix = NDArray[np.float32]

DTYPE, LARGEST = "int8", 127
SCALE_BYTES = 5  # of a channel: float32 and a zero point
OVERSAMPLED = 8  # Halko et al. 2011, arXiv 0909.4061, section 4.2: five or ten suffice
ITERATIONS = 8


@dataclass(frozen=True)
class LowRank:
    """A correction of a weight [N, K]: `up` [N, r] times `down` [r, K], float32."""

    up: Matrix
    down: Matrix


def low_rank(error: Matrix, second_moment: NDArray[np.floating] | None, rank: int) -> LowRank:
    """The best approximation of an error, as the module's docstring has it.

    The eigenvectors come from subspace iteration with a fixed seed (Halko et al. 2011, arXiv 0909.4061, algorithm 4.4).

    Args:
        error: [N, K], W − Ŵ.
        second_moment: Σ xᵀx of the layer's input [K, K], its diagonal [K], or None where all columns count alike.
        rank: at most min(N, K).
    """

    def seen(basis: Matrix) -> Matrix:
        """E·Σxᵀx·Eᵀ times a basis [N, q]."""
        columns = error.T @ basis
        if second_moment is not None:
            moment = np.asarray(second_moment, np.float32)
            columns = moment @ columns if moment.ndim == 2 else moment[:, None] * columns
        return error @ columns

    width = min(rank + OVERSAMPLED, len(error))
    basis = np.random.default_rng(0).standard_normal((len(error), width), np.float32)
    for _ in range(ITERATIONS):
        basis, _ = np.linalg.qr(seen(basis))
    _, vectors = np.linalg.eigh((basis.T @ seen(basis)).astype(np.float64))
    up = basis @ vectors[:, : -rank - 1 : -1].astype(np.float32)
    return LowRank(up, up.T @ error)


def planned(plan: TensorPlan, node: ir.Node, operand: WeightOperand, rank: int) -> TensorPlan:
    """A weight's plan with a correction of this rank, where its layer can have one; else `why` says why not.

    Raises:
        UsageError: samples decide about the weight's integers, which would move after the correction is made.
    """
    if not rank or not plan.quantized:
        return plan
    if plan.on_samples:
        raise UsageError(
            f"low_rank corrects what is rounded at once, and {plan.algorithm} goes on rounding on samples",
            where=f"tensor {plan.tensor}", fix="take out low_rank, or use mse, or gptq without propagation and sweeps",
        )  # fmt: skip
    shape = static_shape(operand.value) or ()
    size = rank * sum(shape) + SCALE_BYTES * (rank + shape[operand.channel_axis])
    reason = _hindrance(node, operand)
    if not reason and (rank > min(shape) or plan.bytes_after + size >= 2 * plan.elements):
        reason = f"with a correction of rank {rank} it would be larger than float16"
    if reason:
        return replace(plan, why=f"{plan.why}; {reason}")
    return replace(plan, rank=rank, bytes_after=plan.bytes_after + size)


def _hindrance(node: ir.Node, operand: WeightOperand) -> str:
    """Why a layer has no place for a correction; empty where it has."""
    if operand.kind != "linear" or len(operand.value.shape or ()) != 2:
        return "a low-rank correction is for linear layers"
    if node.attributes.get_int("transA", 0) or node.attributes.get_float("alpha", 1.0) != 1:
        return f"{node.name} changes its product, so that no correction can be added"
    if len(operand.value.uses()) != 1:
        return "several layers share it"
    return ""


def rounded(matrix: Matrix, axis: int) -> tuple[NDArray[np.int32], Encoding]:
    """In 8 bits with a scale for each channel of this axis, nothing clipped."""
    reach = np.abs(matrix).max(axis=1 - axis)
    scale = np.where(reach > 0, reach / LARGEST, 1.0).astype(np.float32)
    encoding = Encoding(DTYPE, scale, np.zeros(scale.shape, np.int32), axis=axis)
    return encoding.quantize(matrix), encoding


def add_branch(graph: ir.Graph, node: ir.Node, correction: LowRank) -> tuple[ir.Value, ir.Value]:
    """Add the correction's products to a layer's output, in place; whatever read that reads the sum.

    Args:
        graph: which holds `node`.
        node: a Gemm or MatMul with a weight of rank 2.
        correction: of its weight.

    Returns:
        The initializers of `down` and `up`, which lie as the weight does.
    """
    transposed = node.op_type == "Gemm" and bool(node.attributes.get_int("transB", 0))
    attributes = {"transB": 1} if transposed else {}
    (x, weight), y = node.inputs[:2], node.outputs[0]
    assert x is not None and weight is not None
    name, made, factors = y.name or "", [], []
    for part, matrix in (("down", correction.down), ("up", correction.up)):
        lying = np.ascontiguousarray(matrix if transposed else matrix.T)
        factor = add_initializer(graph, f"{weight.name}/{part}", lying)
        product = ir.node(node.op_type, [x, factor], attributes, name=f"{name}/by_{part}")
        product.outputs[0].name = f"{name}/by_{part}"
        product.outputs[0].shape = ir.Shape([*(x.shape or ())[:-1], len(matrix)])
        product.outputs[0].type = y.type
        factors.append(factor)
        made.append(product)
        x = product.outputs[0]
    total = ir.node("Add", [y, x], name=f"{name}/corrected")
    graph.insert_after(node, [*made, total])
    replace_value(y, total.outputs[0])
    y.name = f"{name}/rounded"
    total.replace_input_with(0, y)
    return factors[0], factors[1]
