"""GPTQ of layers and of convolutions of any kind, on what the rounded layers before them give, and coordinate descent."""

from dataclasses import replace

import torch
from torch import Tensor

from pocketport.compress.algorithms.affine_grid import Grid
from pocketport.compress.algorithms.column_rounding import damp, descended, factored, propagated
from pocketport.compress.reconstruction.layer import Layer
from pocketport.compress.reconstruction.options import SequentialGptq


@torch.no_grad()
def sequential_gptq(layer: Layer, options: SequentialGptq) -> tuple[Tensor, Grid]:
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
    hessian, drift = layer.moments()
    damp(hessian, options.damping)
    factor, hessian = factored(hessian.clone()), hessian.float()
    target, grid = layer.grouped(layer.weight), layer.grid
    if options.propagation:
        target = (target + options.propagation * factor.applied(drift)).float()
    integers = propagated(target, factor, grid.columns(factor.order), torch.float32)
    natural = torch.arange(target.shape[2], device=target.device).expand_as(factor.order)
    for _ in range(options.sweeps):
        grid = _refitted(layer, target, hessian, integers, grid)
        now = layer.grouped(grid.dequantized(_whole(integers)))
        integers = descended(target, hessian, now, grid.columns(natural), torch.float32)
    if options.sweeps:
        grid = _refitted(layer, target, hessian, integers, grid)
    return _whole(integers), grid


def _whole(matrices: Tensor) -> Tensor:
    """Of the groups [G, N / G, K] the matrix [N, K]."""
    return matrices.flatten(0, 1)


def _refitted(layer: Layer, target: Tensor, hessian: Tensor, integers: Tensor, grid: Grid) -> Grid:
    """The scale of each row that fits its integers best, where a row has just one; as it was where none does."""
    if layer.shared or grid.scale.shape[1] != 1:
        return grid
    steps = integers - layer.grouped(grid.zero)
    met = steps @ hessian
    scale = _whole((met * target).sum(2, keepdim=True) / (met * steps).sum(2, keepdim=True))
    floor = 0.0 if layer.least is None else layer.least[:, None]
    usable = torch.isfinite(scale) & (scale > torch.finfo(torch.float32).tiny) & (scale >= floor)
    return replace(grid, scale=torch.where(usable, scale, grid.scale))
