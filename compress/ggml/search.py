"""Scales of small blocks by weighted least squares: what every quantizer of ggml's block formats starts from.

For candidates of a scale the integers are rounded, the best scale (and offset) for those integers follows in closed form,
and the candidate of least weighted squared error wins: alternating least squares with one step from each start, as in
llama.cpp's ``make_qx_quants`` and ``make_qkx3_quants``.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

STARTS = tuple(0.1 * step for step in range(-9, 10))  # changes of the number of levels that a block's extremes span
LEAST_DETERMINANT = 1e-5  # of the equations for scale and offset, relative
AFFINE_STARTS = tuple(-1.0 + 0.15 * step for step in range(13))


def signed_scale(x: Tensor, weights: Tensor, least: int) -> Tensor:
    """The scale s of least Σ w (x − s q)² with q in least … −least − 1.

    Args:
        x: float32 [blocks, n].
        weights: float32 [blocks, n] ≥ 0.
        least: the most negative integer (−8 for 4 bits): it goes to the greatest magnitude, whatever its sign.

    Returns:
        float32 [blocks], of either sign; 0 for blocks of zeros.
    """

    def rounded(scaled: Tensor) -> Tensor:
        return scaled.round_().clamp_(least, -least - 1)

    return _searched(x, weights, float(least), rounded)


class Codebook:
    """Unequally spaced levels −128 … 127, ascending, and the nearest of them by table.

    Args:
        levels: whole numbers.
    """

    def __init__(self, levels: Sequence[int]) -> None:
        self.levels = torch.tensor(levels, dtype=torch.float32)
        # Midpoints are multiples of one half: the table has a step of one half.
        halves = torch.arange(-256, 256) / 2 + 0.25
        self._nearest = torch.bucketize(halves, (self.levels[1:] + self.levels[:-1]) / 2)
        self._rounded = self.levels[self._nearest]

    def nearest(self, x: Tensor) -> Tensor:
        """Indices int64 of the nearest levels."""
        return self._nearest.take(self._places(x))

    def rounded(self, x: Tensor) -> Tensor:
        """The nearest levels."""
        return self._rounded.take(self._places(x))

    def _places(self, x: Tensor) -> Tensor:
        return (x * 2).floor_().add_(256).clamp_(0, 511).long()


def codebook_scale(x: Tensor, weights: Tensor, codebook: Codebook) -> Tensor:
    """The scale s of least Σ w (x − s c)² with c from a `codebook`; see `signed_scale`."""
    return _searched(x, weights, float(codebook.levels[0]), codebook.rounded)


def _searched(x: Tensor, weights: Tensor, extreme: float, rounded: Callable[[Tensor], Tensor]) -> Tensor:
    greatest = x.gather(-1, x.abs().argmax(-1, keepdim=True))
    inverse = torch.where(greatest != 0, 1 / greatest, 0)
    best = torch.zeros(len(x))
    scale = torch.zeros(len(x))
    for change in STARTS:
        q = rounded(x * ((extreme + change * abs(extreme) / 8) * inverse))
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
