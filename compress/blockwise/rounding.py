"""Weights that need no calibration data, and what becomes of rounded ones."""

from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from pocketport.compress.blockwise.gptq import WeightForm
from pocketport.compress.blockwise.grids import Form, extreme_grid, round_to, searched_grid
from pocketport.compress.blockwise.half_quadratic import half_quadratic_grid
from pocketport.compress.formats.contract import WeightPlan
from pocketport.compress.ggml.blocks import FORMS
from pocketport.compress.ggml.quantize import BlockMatrix
from pocketport.compress.quantized_weights import PackedWeight, Quantized, QuantizedWeight
from pocketport.compress.sources.source import QuantizedTensor
from pocketport.compress.torch_device import row_runs, stored_as_torch
from pocketport.errors import UsageError

RUN_ELEMENTS = 1 << 24  # weights in float32 at a time: 64 MB
PACKED_ELEMENTS = 1 << 18  # ggml's searches go over them twenty times: they should stay in the caches


def rounded(plan: WeightPlan, tensor: ir.TensorProtocol, device: torch.device) -> Quantized:
    """A tensor as its plan says, without calibration data; rows are worked on in runs.

    Raises:
        UsageError: the algorithm needs data, or does not exist.
    """
    if plan.algorithm == "stored" and isinstance(tensor, QuantizedTensor):
        return tensor.quantized()
    if plan.algorithm == "ggml":
        return pack_ggml(plan, stored_as_torch(tensor), None)
    make_grid = {"rtn": extreme_grid, "mse": searched_grid, "hqq": half_quadratic_grid}.get(plan.algorithm)
    if make_grid is None:
        raise UsageError(
            f"the algorithm {plan.algorithm!r} can't be used for checkpoint formats",
            where=f"recipe, tensor {plan.tensor}",
            fix="use rtn, mse, hqq or gptq",
        )
    stored = stored_as_torch(tensor)
    form = Form.of(plan.scheme, plan.symmetric, plan.shape[-1])
    parts = []
    for run in row_runs(stored, RUN_ELEMENTS // stored.shape[-1]):
        weight = run.to(device, torch.float32)
        grid = make_grid(weight, form)
        parts.append(form.stored(round_to(weight, grid), grid))
    return QuantizedWeight(
        form.bits, form.group, form.symmetric,
        np.concatenate([p.integers for p in parts]),
        np.concatenate([p.scale for p in parts]),
        np.concatenate([p.zero_point for p in parts]),
    )  # fmt: skip


def form_of(plan: WeightPlan) -> WeightForm[Any]:
    """How a tensor's plan says that it is written."""
    if plan.scheme in FORMS:
        return BlockMatrix(plan.scheme, plan.shape[-1])
    return Form.of(plan.scheme, plan.symmetric, plan.shape[-1])


def pack_ggml(plan: WeightPlan, stored: Tensor, importance: Tensor | None) -> PackedWeight:
    """A matrix in one of ggml's block formats, in runs of rows.

    Args:
        plan: its scheme is the type.
        stored: [N, K] in any float dtype.
        importance: float32 [K], the mean square of each input, or None.
    """
    form = BlockMatrix(plan.scheme, stored.shape[-1])
    runs = row_runs(stored.reshape(-1, stored.shape[-1]), PACKED_ELEMENTS // stored.shape[-1])
    data = [form.nearest(run.float(), importance) for run in runs]
    return PackedWeight(plan.scheme, plan.shape, np.concatenate(data))
