"""What the codes of ggml's block formats stand for before they are scaled: whole numbers, or those of a codebook."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor


class Levels(Protocol):
    """Numbers in ascending order; a code is the place of one among them.

    Attributes:
        extreme: the least of them, which is the farthest from zero but for ranges that begin there.
    """

    extreme: float

    def codes(self, x: Tensor) -> Tensor:
        """Of the nearest levels, whole numbers in any dtype."""
        ...

    def of(self, codes: Tensor) -> Tensor:
        """The levels of codes in any dtype, float32."""
        ...

    def rounded(self, x: Tensor) -> Tensor:
        """The nearest levels, float32."""
        ...


class Whole:
    """All whole numbers of a range.

    Args:
        least: its first.
        greatest: its last.
    """

    def __init__(self, least: int, greatest: int) -> None:
        self.extreme = float(least)
        self._least, self._greatest = least, greatest

    def codes(self, x: Tensor) -> Tensor:
        """See `Levels`."""
        return self.rounded(x).sub_(self._least)

    def of(self, codes: Tensor) -> Tensor:
        """See `Levels`."""
        return codes.float() + self._least

    def rounded(self, x: Tensor) -> Tensor:
        """See `Levels`."""
        return x.round().clamp_(self._least, self._greatest)


class Codebook:
    """Unequally spaced whole numbers −128 … 127, and the nearest of them by table.

    Args:
        levels: ascending.
    """

    def __init__(self, levels: Sequence[int]) -> None:
        self.extreme = float(levels[0])
        self._levels = torch.tensor(levels, dtype=torch.float32)
        # Midpoints are multiples of one half: the table has a step of one half.
        halves = torch.arange(-256, 256) / 2 + 0.25
        self._nearest = torch.bucketize(halves, (self._levels[1:] + self._levels[:-1]) / 2)
        self._rounded = self._levels[self._nearest]

    def codes(self, x: Tensor) -> Tensor:
        """See `Levels`."""
        return self._nearest.to(x.device).take(self._places(x))

    def of(self, codes: Tensor) -> Tensor:
        """See `Levels`."""
        return self._levels.to(codes.device).take(codes.long())

    def rounded(self, x: Tensor) -> Tensor:
        """See `Levels`."""
        return self._rounded.to(x.device).take(self._places(x))

    def _places(self, x: Tensor) -> Tensor:
        return (x * 2).floor_().add_(256).clamp_(0, 511).long()
