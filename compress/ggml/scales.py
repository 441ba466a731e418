"""The scales of ggml's blocks as files hold them, and our own search for them.

Errors are weighted by the mean square of each input times √(σ² + x²), as llama.cpp does for its importance matrices.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pocketport.compress.ggml import packing
from pocketport.compress.ggml.levels import Levels, Whole
from pocketport.compress.ggml.search import affine_scale, symmetric_scale

UNIT_STARTS = tuple(0.2 * step for step in range(-4, 5))  # of the steps that the scales of a super-block span


@dataclass(frozen=True)
class BlockScales:
    """Of B blocks in n parts each: weight = scale · level − offset, or without offsets scale · level.

    Attributes:
        units: float32 [B, F], float16 numbers: of the scales and, where F is 2, of the offsets.
        steps: float32 [B, F, n], whole numbers: how many units each scale, and each offset, is.
    """

    units: Tensor
    steps: Tensor

    @property
    def scale(self) -> Tensor:
        """float32 [B, n]."""
        return self.units[:, :1] * self.steps[:, 0]

    @property
    def offset(self) -> Tensor | None:
        """float32 [B, n]: what is taken away; None in types without."""
        return None if self.units.shape[1] == 1 else self.units[:, 1:] * self.steps[:, 1]

    def rows(self, part: slice) -> "BlockScales":
        """Of some of the blocks."""
        return BlockScales(self.units[part], self.steps[part])

    def stored(self) -> "BlockScales":
        """With units as float16 holds them.

        Raises:
            InputError: one is too large for float16.
        """
        units = half(self.units)
        if not bool(torch.isfinite(units).all()):
            raise packing.too_large()
        return BlockScales(units, self.steps)


def joined(scales: Sequence[BlockScales]) -> BlockScales:
    """Those of runs of blocks as one."""
    return BlockScales(torch.cat([s.units for s in scales]), torch.cat([s.steps for s in scales]))


def interleaved(scales: Sequence[BlockScales]) -> BlockScales:
    """Those of the first blocks of all rows, of the second ones and so on, as one, row after row."""
    units, steps = torch.stack([s.units for s in scales], 1), torch.stack([s.steps for s in scales], 1)
    return BlockScales(units.flatten(0, 1), steps.flatten(0, 1))


def half(values: Tensor) -> Tensor:
    """Rounded to float16, still float32."""
    return values.half().float()


def over(x: Tensor, scale: Tensor) -> Tensor:
    """x / scale, 0 where the scale is 0."""
    return x * torch.where(scale != 0, 1 / scale, 0)


def weights_of(x: Tensor, heed: Tensor | None) -> Tensor:
    """How much each weight's error counts, [B, n]: √(σ² + x²), σ² twice the block's mean square, times `heed`."""
    variance = (x * x).mean(-1, keepdim=True) * 2
    weights = (variance + x * x).sqrt_().clamp_min_(torch.finfo(torch.float32).tiny)
    return weights if heed is None else weights * heed


def extreme(x: Tensor, heed: Tensor | None, greatest: int) -> BlockScales:
    """Scales of the greatest magnitudes: nothing is clipped."""
    return _plain(x.abs().amax(-1) / greatest)


def symmetric(x: Tensor, heed: Tensor | None, levels: Levels) -> BlockScales:
    """One scale a block."""
    return _plain(half(symmetric_scale(x, weights_of(x, heed), levels)))


def affine(x: Tensor, heed: Tensor | None, greatest: int) -> BlockScales:
    """One scale and one offset a block, levels 0 … `greatest`."""
    return _plain(*map(half, affine_scale(x, weights_of(x, heed), greatest)))


def symmetric_super(x: Tensor, heed: Tensor | None, levels: Levels, *, part: int, least: int) -> BlockScales:
    """Scales of parts as whole numbers from `least` to −`least` − 1 times one float16 a block."""
    parts, weights = x.reshape(-1, part), weights_of(x, heed).reshape(-1, part)
    scale, steps = symmetric_scale(parts, weights, levels).reshape(len(x), -1), Whole(least, -least - 1)
    unit = half(symmetric_scale(scale, weights.sum(-1).reshape(scale.shape), steps))[:, None]
    return BlockScales(unit, steps.rounded(over(scale, unit))[:, None])


def affine_super(x: Tensor, heed: Tensor | None, greatest: int, *, part: int, most: int) -> BlockScales:
    """Scales and offsets of parts as whole numbers 0 … `most` times two float16 a block; levels 0 … `greatest`."""
    parts, weights = x.reshape(-1, part), weights_of(x, heed).reshape(-1, part)
    scale, offset = affine_scale(parts, weights, greatest)
    total = weights.sum(-1)
    counts = total.reshape(len(x), -1)
    first = torch.linalg.vecdot(weights, parts)
    steps, unit = _steps(scale.reshape(counts.shape), counts, most)
    s = (steps * unit).reshape(-1)
    # The offsets are fitted once more, to what has become of the scales.
    q = over(parts + offset[:, None], s[:, None]).round_().clamp_(0, greatest)
    offset = ((s * torch.linalg.vecdot(weights, q) - first) / total).clamp_min_(0)
    offset_steps, offset_unit = _steps(offset.reshape(counts.shape), counts, most)
    return BlockScales(torch.cat([unit, offset_unit], 1), torch.stack([steps, offset_steps], 1))


def _plain(*units: Tensor) -> BlockScales:
    """Of blocks that are one part, from their scales [B] and offsets."""
    stacked = torch.stack(units, 1)
    return BlockScales(stacked, torch.ones_like(stacked)[..., None])


def _steps(values: Tensor, weights: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Values ≥ 0 [B, n] as integers 0 … `most` times one float16 a block, by weighted least squares: ([B, n], [B, 1])."""
    inverse = over(torch.full_like(values[:, :1], float(most)), values.amax(-1, keepdim=True))
    best = torch.full_like(inverse, -1.0)
    unit = torch.zeros_like(inverse)
    for change in UNIT_STARTS:
        q = (values * (inverse * (1 + change / most))).round_().clamp_(0, most)
        cross, square = (weights * q * values).sum(-1, keepdim=True), (weights * q * q).sum(-1, keepdim=True)
        gain = torch.where(square > 0, cross * cross / square, 0)
        better = gain > best
        best, unit = torch.where(better, gain, best), torch.where(better, over(cross, square), unit)
    unit = half(unit)
    return over(values, unit).round_().clamp_(0, most), unit
