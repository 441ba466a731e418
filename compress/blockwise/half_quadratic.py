"""Grids of least l_p error, p < 1, without data: few weights may err much so that the others err less.

HQQ (Badri and Shaji 2023, https://mobiusml.github.io/hqq_blog/) minimizes Σ |W − Ŵ|^p by half-quadratic splitting: the
errors that outliers are granted go into a matrix E by a shrinkage operator, and zero points are fitted to W − E in closed
form. There zero points are floats, and scales stay as they were. In files zero points are whole, and rounded they hardly
ever move; so the scales are fitted to W − E as well, by least squares.
"""

from dataclasses import replace

import torch
from torch import Tensor

from pocketport.compress.algorithms.affine_grid import Grid, joined
from pocketport.compress.blockwise.grids import CHUNK_ELEMENTS, Form, extreme_grid, searched_grid
from pocketport.compress.torch_device import row_runs

POWER = 0.7  # p; this, β, its growth κ and the iterations are the paper's
PENALTY, GROWTH = 10.0, 1.01
ITERATIONS = 20
LEAST = 1e-20  # of an error, in steps: a negative power of 0 is infinite


def half_quadratic_grid(weight: Tensor, form: Form) -> Grid:
    """The grid of least Σ |w − ŵ|^p a group among those that the iterations pass, `searched_grid` first, and the extremes'.

    Args:
        weight: float32 [N, K].
        form: see `Form`; where it is symmetric the scales alone are fitted.
    """
    return joined([_iterated(run, form) for run in row_runs(weight, CHUNK_ELEMENTS // weight.shape[1])])


def shrunk(error: Tensor, slope: Tensor, penalty: float) -> Tensor:
    """The paper's shrinkage operator, sign(x) · max(|x| − |x|^(p−1) / β, 0); `slope` is |x|^(p−1)."""
    return (error.abs() - slope / penalty).clamp_min_(0).mul_(error.sign())


def _iterated(weight: Tensor, form: Form) -> Grid:
    """One run of rows. Errors are counted in steps of the first grid."""
    grouped = weight.reshape(len(weight), -1, form.group)
    best, grid = extreme_grid(weight, form), searched_grid(weight, form)
    unit, penalty = grid.scale[..., None], PENALTY
    least, _, _, _ = _rounded(grouped, best, form, unit)
    for _ in range(ITERATIONS):
        size, error, slope, integers = _rounded(grouped, grid, form, unit)
        better = size < least
        least = torch.where(better, size, least)
        best = grid.where(better, best)
        grid = _fitted(torch.addcmul(grouped, shrunk(error, slope, penalty), unit, value=-1), integers, grid, form)
        penalty *= GROWTH
    return best


def _rounded(grouped: Tensor, grid: Grid, form: Form, unit: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of weights [n, G, group] on a grid Σ |x|^p [n, G] with x the error over `unit`, x, |x|^(p−1), and the integers."""
    scale, zero = grid.scale[..., None], grid.zero[..., None]
    integers = (grouped / scale).round_().add_(zero).clamp_(0, form.highest)
    error = torch.addcmul(grouped, integers - zero, scale, value=-1).div_(unit)
    size = error.abs()
    slope = size.clamp_min(LEAST).pow_(POWER - 1)
    return torch.linalg.vecdot(size, slope), error, slope, integers


def _fitted(target: Tensor, integers: Tensor, grid: Grid, form: Form) -> Grid:
    """Zero points as the paper fits them, rounded, and then scales of the same signs; as they were where none fits."""
    zero = grid.zero
    if not form.symmetric:
        zero = (integers - target / grid.scale[..., None]).mean(-1).round_().clamp_(0, form.highest)
    steps = integers - zero[..., None]
    scale = torch.linalg.vecdot(steps, target) / torch.linalg.vecdot(steps, steps)
    scale = scale.half().float() if form.half else scale
    scale = torch.where(torch.isfinite(scale) & (scale * grid.scale > 0), scale, grid.scale)
    return replace(grid, scale=scale, zero=zero)
