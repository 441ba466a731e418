"""A rounded matrix made better under its whole Hessian: integers with the scales fixed, then scales with the integers fixed.

Both steps lower tr((Ŵ − W) H (Ŵ − W)ᵀ), the error of the layer's output on the calibration data, and neither needs
more than products of matrices.
"""

import torch
from torch import Tensor

from pocketport.compress.blockwise.grids import Form, Grid, dequantized, joined

BLOCK = 32  # columns whose updates to the rest are applied at once
RUN_ELEMENTS = 1 << 22  # weights that are worked on at once: rows do not depend on one another
RIDGE = 1e-4  # pulls scales to what they were, of the diagonal's mean: groups of zeros leave theirs undetermined


def refined(
    weight: Tensor, hessian: Tensor, integers: Tensor, grid: Grid, form: Form, sweeps: int
) -> tuple[Tensor, Grid]:
    """Alternate `refitted` scales and a sweep of `descended` integers.

    Args:
        weight: float32 [N, K], what the integers should stand for.
        hessian: float32 [K, K], symmetric, positive definite.
        integers: uint8 [N, K].
        grid: of the integers.
        form: see `Form`.
        sweeps: how often; scales once more at the end.
    """
    rows = max(1, RUN_ELEMENTS // weight.shape[1])
    done: list[tuple[Tensor, Grid]] = []
    for start in range(0, len(weight), rows):
        part = slice(start, start + rows)
        w, q, own = weight[part], integers[part], Grid(grid.scale[part], grid.zero[part])
        for _ in range(sweeps):
            own = refitted(w, hessian, q, own, form)
            q = descended(w, hessian, q, own, form)
        done.append((q, refitted(w, hessian, q, own, form)))
    return torch.cat([q for q, _ in done]), joined([own for _, own in done])


def descended(weight: Tensor, hessian: Tensor, integers: Tensor, grid: Grid, form: Form) -> Tensor:
    """One sweep of cyclic coordinate descent: each column takes the integers that are best beside all the others.

    QuantEase (Behdin et al. 2023, arXiv 2309.01885, algorithm 1). Arguments and result as `refined`.
    """
    # Transposed, so that a column is contiguous.
    now = dequantized(integers, grid, form).T.contiguous()
    gradient = hessian @ (now - weight.T)
    result = torch.empty(now.shape, dtype=torch.uint8, device=now.device)
    scale, zero = grid.scale.T.contiguous(), grid.zero.T.contiguous()
    curvature = hessian.diagonal().tolist()
    for start in range(0, len(now), BLOCK):
        stop = min(start + BLOCK, len(now))
        slope = gradient[start:stop].clone()
        change = torch.empty_like(slope)
        within = hessian[start:stop, start:stop]
        for j in range(start, stop):
            own, group = j - start, j // form.group
            best = now[j] - slope[own] / curvature[j]
            q = best.div_(scale[group]).round_().add_(zero[group]).clamp_(0, form.highest)
            result[j] = q.to(torch.uint8)
            torch.sub(q.sub_(zero[group]).mul_(scale[group]), now[j], out=change[own])
            if j + 1 < stop:
                slope[own + 1 :].addr_(within[own + 1 :, own], change[own])
        if stop < len(now):
            gradient[stop:].addmm_(hessian[stop:, start:stop], change)
    return result.T.contiguous()


def refitted(weight: Tensor, hessian: Tensor, integers: Tensor, grid: Grid, form: Form) -> Grid:
    """Scales by least squares, all groups of a row together; a row whose error would not fall keeps its own.

    Arguments as `refined`; zero points stay, and so do the signs of scales.
    """
    n, groups = grid.scale.shape
    steps = integers.reshape(n, groups, form.group).float().sub_(grid.zero[..., None])
    products = torch.empty(n, groups, groups, device=weight.device)
    for group in range(groups):
        rows = hessian[group * form.group : (group + 1) * form.group]
        products[:, group] = (steps[:, group] @ rows).reshape(n, groups, form.group).mul_(steps).sum(-1)
    target = (weight @ hessian).reshape(n, groups, form.group).mul_(steps).sum(-1)
    ridge = RIDGE * products.diagonal(dim1=1, dim2=2).mean(1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    products.diagonal(dim1=1, dim2=2).add_(ridge)
    scale = torch.linalg.solve(products, target + ridge * grid.scale)
    if form.half:
        scale = scale.half().float()
    usable = torch.isfinite(scale) & (scale * grid.scale > 0)
    found = Grid(torch.where(usable, scale, grid.scale), grid.zero)
    better = _errors(weight, hessian, integers, found, form) < _errors(weight, hessian, integers, grid, form)
    return Grid(torch.where(better[:, None], found.scale, grid.scale), grid.zero)


def _errors(weight: Tensor, hessian: Tensor, integers: Tensor, grid: Grid, form: Form) -> Tensor:
    """(ŵ − w) H (ŵ − w)ᵀ of every row, [N]."""
    difference = dequantized(integers, grid, form).sub_(weight)
    errors: Tensor = torch.linalg.vecdot(difference @ hessian, difference)
    return errors
