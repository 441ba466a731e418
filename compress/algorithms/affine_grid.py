"""The grid of a matrix in torch: scales and zero points of blocks of its columns, and rounding to them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pocketport.compress.algorithms.column_rounding import Rounding


@dataclass(frozen=True)
class Grid:
    """What integers of a matrix [N, K] stand for, (integer − zero) · scale; every row has B blocks of K / B columns.

    Attributes:
        scale: float32 [N, B].
        zero: float32 [N, B], whole numbers.
        low: least integer.
        high: greatest integer.
    """

    scale: Tensor
    zero: Tensor
    low: int
    high: int

    def nearest(self, weight: Tensor) -> Tensor:
        """The nearest integers, float32 [N, K]."""
        steps = (weight.reshape(*self.scale.shape, -1) / self.scale[..., None]).round_()
        return steps.add_(self.zero[..., None]).clamp_(self.low, self.high).reshape(weight.shape)

    def dequantized(self, integers: Tensor) -> Tensor:
        """What integers of any dtype stand for, float32 [N, K]."""
        steps = integers.reshape(*self.scale.shape, -1) - self.zero[..., None]
        return steps.mul_(self.scale[..., None]).reshape(integers.shape)

    def where(self, here: Tensor, other: "Grid") -> "Grid":
        """This grid where `here` [N, B] says so, another one elsewhere."""
        scale, zero = torch.where(here, self.scale, other.scale), torch.where(here, self.zero, other.zero)
        return Grid(scale, zero, self.low, self.high)

    def rows(self, part: slice) -> "Grid":
        """Of some of the rows."""
        return Grid(self.scale[part], self.zero[part], self.low, self.high)

    def columns(self, order: Tensor) -> Rounding:
        """Rounding of columns that go in this order, [G, K], where the rows are those of G problems."""
        groups, columns = order.shape
        blocks = self.scale.shape[1]
        # Transposed, so that a block of columns is contiguous.
        scale, zero = (v.reshape(groups, -1, blocks).mT.reshape(groups * blocks, -1) for v in (self.scale, self.zero))
        first = blocks * torch.arange(groups, device=order.device)
        places = (order // (columns // blocks)).T + first

        def rounded(place: int, values: Tensor) -> tuple[Tensor, Tensor]:
            own_scale, own_zero = scale.index_select(0, places[place]), zero.index_select(0, places[place])
            integers = (values / own_scale).round_().add_(own_zero).clamp_(self.low, self.high)
            return integers, (integers - own_zero).mul_(own_scale)

        return rounded


def joined(grids: Sequence[Grid]) -> Grid:
    """Grids of runs of rows as one."""
    first = grids[0]
    return Grid(torch.cat([g.scale for g in grids]), torch.cat([g.zero for g in grids]), first.low, first.high)
