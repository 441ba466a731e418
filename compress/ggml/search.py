"""Scales of small blocks by weighted least squares: what every quantizer of ggml's block formats starts from.

For candidates of a scale the integers are rounded, the best scale (and offset) for those integers follows in closed form,
and the candidate of least weighted squared error wins: alternating least squares with one step from each start, as in
llama.cpp's ``make_qx_quants`` and ``make_qkx3_quants``.
"""

import torch
from torch import Tensor

from pocketport.compress.ggml.levels import Levels

STARTS = tuple(0.1 * step for step in range(-9, 10))  # changes of the level that a block's extreme has, of 8 levels
LEAST_DETERMINANT = 1e-5  # of the equations for scale and offset, relative
AFFINE_STARTS = tuple(-1.0 + 0.15 * step for step in range(13))


def symmetric_scale(x: Tensor, weights: Tensor, levels: Levels) -> Tensor:
    """The scale s of least Σ w (x − s q)² with q from `levels`.

    Args:
        x: float32 [blocks, n].
        weights: float32 [blocks, n] ≥ 0.
        levels: their extreme goes to about the greatest magnitude, whatever its sign.

    Returns:
        float32 [blocks], of either sign; 0 for blocks of zeros.
    """
    greatest = x.gather(-1, x.abs().argmax(-1, keepdim=True))
    inverse = torch.where(greatest != 0, 1 / greatest, 0)
    best, scale = x.new_zeros(len(x)), x.new_zeros(len(x))
    step = max(1.0, abs(levels.extreme) / 8)
    for change in STARTS:
        q = levels.rounded(x * ((levels.extreme + change * step) * inverse))
        weighted = q * weights
        cross, square = torch.linalg.vecdot(weighted, x), torch.linalg.vecdot(weighted, q)
        gain = torch.where(square > 0, cross * cross / square, 0)  # Σwx² less the error
        better = gain > best
        best = torch.where(better, gain, best)
        scale = torch.where(better, cross / square, scale)
    return scale


def affine_scale(x: Tensor, weights: Tensor, greatest: int) -> tuple[Tensor, Tensor]:
    """Scale s ≥ 0 and offset m ≥ 0 of least Σ w (x − s q + m)² with q in 0 … `greatest`.

    Args:
        x: float32 [blocks, n].
        weights: float32 [blocks, n] ≥ 0, not all zero in a block.
        greatest: integer.

    Returns:
        s and m, float32 [blocks] each.
    """
    low = x.amin(-1).clamp_max_(0)
    spread = x.amax(-1) - low
    inverse = torch.where(spread > 0, 1 / spread, 0)
    shifted = x - low[:, None]
    weight, first = weights.sum(-1), torch.linalg.vecdot(weights, x)
    best = torch.full_like(low, torch.inf)
    scale, offset = torch.zeros_like(low), -low
    for change in AFFINE_STARTS:
        q = (shifted * ((greatest + change) * inverse)[:, None]).round_().clamp_(0, greatest)
        weighted = q * weights
        ones, square = weighted.sum(-1), torch.linalg.vecdot(weighted, q)
        cross = torch.linalg.vecdot(weighted, x)
        determinant = weight * square - ones * ones
        apart = determinant > LEAST_DETERMINANT * weight * square  # else all integers are the same
        s = torch.where(apart, (weight * cross - first * ones) / determinant, 0)
        m = torch.where(apart, (ones * cross - square * first) / determinant, -low)
        above = (m < 0) | ~(apart | (square == 0))  # an offset must not be negative
        s = torch.where(above, torch.where(square > 0, cross / square, 0), s)
        m = m.clamp_min_(0)
        error = s * s * square - 2 * s * cross + 2 * m * first - 2 * s * m * ones + m * m * weight  # less Σwx²
        better = (error < best) & (s >= 0)
        best = torch.where(better, error, best)
        scale, offset = torch.where(better, s, scale), torch.where(better, m, offset)
    return scale, offset
