"""A rounded matrix made better under its whole Hessian: integers with the scales fixed, then scales with the integers fixed.

Both steps lower tr((Ŵ − W) H (Ŵ − W)ᵀ), the error of the layer's output on the calibration data, and neither needs
more than products of matrices.
"""

from dataclasses import replace

import torch
from torch import Tensor

from pocketport.compress.algorithms.affine_grid import Grid, joined
from pocketport.compress.algorithms.column_rounding import descended

RUN_ELEMENTS = 1 << 22  # weights that are worked on at once: rows do not depend on one another
RIDGE = 1e-4  # pulls scales to what they were, of the diagonal's mean: groups of zeros leave theirs undetermined


def refined(
    weight: Tensor, hessian: Tensor, integers: Tensor, grid: Grid, sweeps: int, *, half: bool
) -> tuple[Tensor, Grid]:
    """Alternate `refitted` scales and a sweep of `descended` integers.

    Args:
        weight: float32 [N, K], what the integers should stand for.
        hessian: float32 [K, K], symmetric, positive definite.
        integers: uint8 [N, K].
        grid: of the integers.
        sweeps: how often; scales once more at the end.
        half: scales are float16 numbers.
    """
    rows, columns = max(1, RUN_ELEMENTS // weight.shape[1]), torch.arange(weight.shape[1], device=weight.device)[None]
    done: list[tuple[Tensor, Grid]] = []
    for start in range(0, len(weight), rows):
        part = slice(start, start + rows)
        w, q, own = weight[part], integers[part], grid.rows(part)
        for _ in range(sweeps):
            own = refitted(w, hessian, q, own, half=half)
            q = descended(w[None], hessian[None], own.dequantized(q)[None], own.columns(columns), torch.uint8)[0]
        done.append((q, refitted(w, hessian, q, own, half=half)))
    return torch.cat([q for q, _ in done]), joined([own for _, own in done])


def refitted(weight: Tensor, hessian: Tensor, integers: Tensor, grid: Grid, *, half: bool) -> Grid:
    """Scales by least squares, all groups of a row together; a row whose error would not fall keeps its own.

    Arguments as `refined`; zero points stay, and so do the signs of scales.
    """
    n, groups = grid.scale.shape
    width = weight.shape[1] // groups
    steps = integers.reshape(n, groups, width) - grid.zero[..., None]
    products = torch.empty(n, groups, groups, device=weight.device)
    for group in range(groups):
        rows = hessian[group * width : (group + 1) * width]
        products[:, group] = (steps[:, group] @ rows).reshape(n, groups, width).mul_(steps).sum(-1)
    target = (weight @ hessian).reshape(n, groups, width).mul_(steps).sum(-1)
    ridge = RIDGE * products.diagonal(dim1=1, dim2=2).mean(1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    products.diagonal(dim1=1, dim2=2).add_(ridge)
    scale = torch.linalg.solve(products, target + ridge * grid.scale)
    if half:
        scale = scale.half().float()
    usable = torch.isfinite(scale) & (scale * grid.scale > 0)
    found = replace(grid, scale=torch.where(usable, scale, grid.scale))
    better = _errors(weight, hessian, integers, found) < _errors(weight, hessian, integers, grid)
    return found.where(better[:, None], grid)


def _errors(weight: Tensor, hessian: Tensor, integers: Tensor, grid: Grid) -> Tensor:
    """(ŵ − w) H (ŵ − w)ᵀ of every row, [N]."""
    difference = grid.dequantized(integers).sub_(weight)
    errors: Tensor = torch.linalg.vecdot(difference @ hessian, difference)
    return errors
