"""GPTQ of layers and of convolutions of any kind, on what the rounded layers before them give, and coordinate descent."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pocketport.compress.reconstruction.layer import Form, Layer
from pocketport.compress.reconstruction.options import SequentialGptq
from pocketport.errors import VerificationError


@torch.no_grad()
def sequential_gptq(layer: Layer, options: SequentialGptq) -> tuple[Tensor, Form]:
    """Round column by column under the Hessian of what meets the layer, then sweep over scales and integers.

    GPTQ (Frantar et al. 2022, arXiv 2210.17323) on x̂, which has passed the rounded layers before, for all groups of a
    convolution at once: its rows are the patches under the kernel. With `propagation` the weight that is rounded makes up
    for a part of what is wrong with x̂ (Arai & Ichikawa 2025, arXiv 2504.09629). `sweeps` of QuantEase's cyclic coordinate
    descent (Behdin et al. 2023, arXiv 2309.01885) follow, each behind a fit of the scales by least squares, where a row
    has one. A bias of the layer's own takes the means out of all of it.

    Returns:
        Integers [N, K] as float32, and their grid.

    Raises:
        VerificationError: the Hessian is not positive definite even when damped.
    """
    problem = _problem(layer, options)
    integers = _propagated(problem)
    for _ in range(options.sweeps):
        if problem.one_scale:
            problem = replace(problem, scale=_refitted(problem, integers, layer.least))
        integers = _descended(problem, integers)
    form = layer.form
    if options.sweeps and problem.one_scale:
        problem = replace(problem, scale=_refitted(problem, integers, layer.least))
        form = replace(form, scale=problem.scale[:, 0].reshape(-1, 1))
    return integers.transpose(1, 2).reshape(layer.weight.shape), form


@dataclass(frozen=True)
class _Problem:
    """Everything of G groups, columns before rows so that those are contiguous.

    Attributes:
        target: float32 [G, K, n], what is rounded.
        hessian: float32 [G, K, K], damped.
        scale: float32 [G, K, n].
        zero: float32 [G, K, n].
        low: least integer.
        high: greatest integer.
        one_scale: a row has a scale of its own, and no other.
    """

    target: Tensor
    hessian: Tensor
    scale: Tensor
    zero: Tensor
    low: int
    high: int
    one_scale: bool

    def rounded(self, weight: Tensor, column: Tensor | int) -> tuple[Tensor, Tensor]:
        """The integers of one column [G, n], and what they stand for."""
        scale, zero = _column(self.scale, column), _column(self.zero, column)
        integers = (weight / scale).round_().add_(zero).clamp_(self.low, self.high)
        return integers, (integers - zero) * scale


def _problem(layer: Layer, options: SequentialGptq) -> _Problem:
    hessian, drift = layer.moments()
    diagonal = hessian.diagonal(dim1=1, dim2=2)
    mean = diagonal.mean(1, keepdim=True)
    diagonal[diagonal <= 0] = 1.0
    diagonal += options.damping * torch.where(mean > 0, mean, 1.0)
    target = layer.grouped(layer.weight).double()
    if options.propagation:
        target = target + options.propagation * torch.linalg.solve(hessian, drift, left=False)
    n, k = layer.weight.shape
    scale, zero = (v.expand(n, k) for v in layer.form.expanded(k))
    turned = [layer.grouped(v).transpose(1, 2).contiguous() for v in (scale, zero)]
    one_scale = layer.form.scale.shape[1] == 1 and not layer.form.shared
    return _Problem(
        target.float().transpose(1, 2).contiguous(), hessian.float(), turned[0], turned[1], layer.form.low,
        layer.form.high, one_scale,
    )  # fmt: skip


def _column(matrix: Tensor, column: Tensor | int) -> Tensor:
    """Column j of each group [G, K, n] → [G, n]; another one in every group where `column` is [G]."""
    if isinstance(column, int):
        return matrix[:, column]
    return matrix[torch.arange(len(matrix), device=matrix.device), column]


def _propagated(problem: _Problem) -> Tensor:
    """GPTQ's recursion, columns by falling size of their input; integers [G, K, n]."""
    groups, columns, _ = problem.target.shape
    every = torch.arange(groups, device=problem.target.device)
    order = torch.argsort(problem.hessian.diagonal(dim1=1, dim2=2), dim=1, descending=True, stable=True)
    ordered = problem.hessian.double()[every[:, None, None], order[:, :, None], order[:, None, :]]
    lower, failed = torch.linalg.cholesky_ex(ordered)
    if bool(failed.any()):
        raise VerificationError(
            "the Hessian of a layer's input is not positive definite", where="gptq",
            fix="give more calibration samples, or a greater damping in the recipe",
        )  # fmt: skip
    upper = torch.linalg.cholesky(torch.cholesky_inverse(lower), upper=True).float()
    left = problem.target[every[:, None], order].contiguous()
    integers = torch.empty_like(problem.target)
    for j in range(columns):
        chosen, restored = problem.rounded(left[:, j], order[:, j])
        integers[every, order[:, j]] = chosen
        error = (left[:, j] - restored) / upper[:, j, j, None]
        left[:, j + 1 :] -= upper[:, j, j + 1 :, None] * error[:, None]
    return integers


def _descended(problem: _Problem, integers: Tensor) -> Tensor:
    """Each column in turn takes the integers that are best beside all others."""
    now = (integers - problem.zero) * problem.scale
    gradient = problem.hessian @ (now - problem.target)
    curvature = problem.hessian.diagonal(dim1=1, dim2=2)
    found = torch.empty_like(integers)
    for j in range(integers.shape[1]):
        found[:, j], restored = problem.rounded(now[:, j] - gradient[:, j] / curvature[:, j, None], j)
        change = restored - now[:, j]
        gradient.baddbmm_(problem.hessian[:, :, j : j + 1], change[:, None])
        now[:, j] = restored
    return found


def _refitted(problem: _Problem, integers: Tensor, least: Tensor | None) -> Tensor:
    """The scale of each row that fits its integers best; as it was where none does."""
    steps = integers - problem.zero
    met = problem.hessian @ steps
    old = problem.scale[:, 0]
    scale = (met * problem.target).sum(1) / (met * steps).sum(1)
    floor = torch.zeros_like(old) if least is None else least.reshape(old.shape)
    usable = torch.isfinite(scale) & (scale > torch.finfo(torch.float32).tiny) & (scale >= floor)
    return torch.where(usable, scale, old)[:, None].expand_as(problem.scale)
