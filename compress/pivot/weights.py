"""From a weight as it lies in the graph to the matrix that algorithms round, and back."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pocketport.calibration.encodings import INTEGER_RANGES, Encoding, Palette
from pocketport.calibration.statistics import SecondMoment
from pocketport.compress.algorithms import PaletteProblem, WeightFormat, WeightProblem, palettize, round_weight
from pocketport.compress.pivot.low_rank import LowRank, low_rank
from pocketport.compress.planning.plan import TensorPlan
from pocketport.compress.reconstruction.options import START
from pocketport.compress.schemes import Granularity
from pocketport.errors import InputError

FLOAT16_MAX = float(np.finfo(np.float16).max)
BLOCK_UNITS = 16  # low-power block quantization counts block scales in sixteenths of the channel's greatest


@dataclass(frozen=True)
class QuantizedTensor:
    """Integers in the tensor's own shape, and what they stand for; indices, where that is a palette.

    `correction` is what stands beside them in float, of a weight whose plan has a rank.
    """

    integers: NDArray[np.integer]
    encoding: Encoding | Palette
    correction: LowRank | None = None


def quantize_weight(
    weight: NDArray[np.floating], plan: TensorPlan, moment: SecondMoment | None, least_scale: NDArray[np.float64] | None
) -> QuantizedTensor:
    """Round `weight` as `plan` says, and make its correction; where samples decide, as `reconstruct` starts from it.

    Args:
        weight: in the graph's layout.
        plan: of kind WEIGHT or TABLE.
        moment: of the layer's input, where calibration has it.
        least_scale: [channels], see WeightProblem.

    Raises:
        InputError: the algorithm needs a Hessian that `moment` lacks, or a palette's float16 can't hold the weights.
    """
    done = _rounded(weight, plan, moment, least_scale)
    if not plan.rank:
        return done
    error = as_matrix(weight - done.encoding.dequantize(done.integers), plan)
    importance, hessian = _input_moments(moment, error.shape, weight.shape, plan.op)
    return replace(done, correction=low_rank(error, importance if hessian is None else hessian, plan.rank))


def as_matrix(weight: NDArray[np.floating], plan: TensorPlan) -> NDArray[np.float32]:
    """A weight with the output channels first, [N, K]."""
    moved = np.moveaxis(np.asarray(weight, np.float32), plan.channel_axis or 0, 0)
    return np.ascontiguousarray(moved).reshape(moved.shape[0], -1)


def as_laid(matrix: NDArray[np.float32], plan: TensorPlan) -> NDArray[np.float32]:
    """A linear layer's matrix [N, K] as its weight lies in the graph."""
    return np.moveaxis(matrix, 0, plan.channel_axis or 0)


def _rounded(
    weight: NDArray[np.floating], plan: TensorPlan, moment: SecondMoment | None, least_scale: NDArray[np.float64] | None
) -> QuantizedTensor:
    channel = plan.channel_axis or 0
    moved = np.moveaxis(np.asarray(weight, np.float32), channel, 0)
    matrix = as_matrix(weight, plan)
    columns = matrix.shape[1]
    importance, hessian = _input_moments(moment, matrix.shape, np.asarray(weight).shape, plan.op)
    if plan.algorithm == "gptq" and not plan.on_samples and hessian is None:
        raise InputError(
            "gptq needs the Hessian of its layer's input, which calibration did not keep",
            where=f"tensor {plan.tensor}",
            fix="calibrate with the `hessians` of this plan",
        )
    if plan.granularity == Granularity.PALETTE:
        if np.abs(matrix).max(initial=0.0) > FLOAT16_MAX:
            raise InputError(
                f"its weights reach {np.abs(matrix).max():.3g}, and palettes hold float16",
                where=f"tensor {plan.tensor}",
                fix="leave its node float, or give it integers",
            )
        palette = PaletteProblem(matrix, plan.bits, plan.block, importance, hessian)
        done = palettize(plan.algorithm, palette, plan.options)
        return QuantizedTensor(np.moveaxis(done.indices.reshape(moved.shape), 0, channel), Palette(done.table, channel))
    low, high = INTEGER_RANGES[plan.dtype]
    form = WeightFormat(
        low, high, plan.symmetric, {"t": 0, "c": columns, "b": plan.block}[plan.granularity], plan.block_scale_levels
    )
    if least_scale is not None and plan.block:
        least_scale = least_scale * BLOCK_UNITS
    problem = WeightProblem(matrix, form, importance, hessian, least_scale)
    start = START[plan.algorithm] if plan.on_samples else ""
    rounded = round_weight(start or plan.algorithm, problem, {} if start else plan.options)
    integers = np.moveaxis(rounded.integers.reshape(moved.shape), 0, channel)
    scale, zero = rounded.grid.scale, rounded.grid.zero_point
    if plan.granularity == "t":
        return QuantizedTensor(integers, Encoding(plan.dtype, scale.reshape(()), zero.reshape(())))
    if plan.granularity == "c":
        return QuantizedTensor(integers, Encoding(plan.dtype, scale[:, 0], zero[:, 0], axis=plan.axis))
    blocks = (*moved.shape[:-1], moved.shape[-1] // plan.block)
    scale, zero = (np.ascontiguousarray(np.moveaxis(v.reshape(blocks), 0, channel)) for v in (scale, zero))
    return QuantizedTensor(integers, Encoding(plan.dtype, scale, zero, axis=plan.axis, block=plan.block))


def _input_moments(
    moment: SecondMoment | None, matrix: tuple[int, ...], shape: tuple[int, ...], op: str
) -> tuple[NDArray[np.float64] | None, NDArray[np.float32] | None]:
    """Mean square of the input of each column of a matrix [N, K], and Σ xᵀx, as far as `moment` has them.

    The columns of a convolution's kernel [N, C, *kernel] that are of one channel have one mean square. Grouped ones have
    other channels in every row: nothing there would weigh one column against another.
    """
    if moment is None:
        return None, None
    mean = moment.diagonal / max(moment.rows, 1)
    if op == "Conv" and shape[1] == mean.size:
        return np.repeat(mean, matrix[1] // mean.size), moment.full if matrix[1] == mean.size else None
    return (mean, moment.full) if op in ("Gemm", "MatMul") and mean.size == matrix[1] else (None, None)


def channel_scales(encoding: Encoding, channel_axis: int) -> NDArray[np.float32]:
    """The scale that a bias shares: per tensor as it is, per channel [N]; of blocks, their greatest by BLOCK_UNITS."""
    if not encoding.block:
        return encoding.scale
    others = tuple(d for d in range(encoding.scale.ndim) if d != channel_axis)
    return np.asarray(encoding.scale.max(axis=others) / BLOCK_UNITS, np.float32)
