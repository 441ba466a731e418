"""Matrices in ggml's block formats as GPTQ sees them: scales that are fixed beforehand, and rounding to them by columns."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pocketport.compress.algorithms.column_rounding import Rounding
from pocketport.compress.ggml import scales
from pocketport.compress.ggml.blocks import BlockForm, Bytes
from pocketport.compress.ggml.levels import Levels
from pocketport.compress.ggml.scales import BlockScales


@dataclass(frozen=True)
class BlockGrid:
    """The scales of a matrix [N, K].

    Attributes:
        form: its format.
        scales: of its N · K / block blocks, row after row.
        count: N.
    """

    form: BlockForm
    scales: BlockScales
    count: int

    def rows(self, part: slice) -> "BlockGrid":
        """Of some of the rows, which are next to one another."""
        start, stop, _ = part.indices(self.count)
        blocks = len(self.scales.units) // self.count
        return BlockGrid(self.form, self.scales.rows(slice(start * blocks, stop * blocks)), stop - start)

    def stored(self) -> "BlockGrid":
        """With scales as float16 holds them; see `BlockScales.stored`."""
        return replace(self, scales=self.scales.stored())

    def codes(self, weight: Tensor) -> Tensor:
        """The nearest codes to [N, K], uint8."""
        return self.form.codes(weight.reshape(-1, self.form.block), self.scales).to(torch.uint8).reshape(weight.shape)

    def packed(self, codes: Tensor) -> Bytes:
        """Codes uint8 [N, K] as files hold them, [N, bytes of a row]."""
        packed = self.form.packed(self.scales, codes.reshape(-1, self.form.block).cpu().numpy())
        return packed.reshape(self.count, -1)

    def dequantized(self, integers: Tensor) -> Tensor:
        """What codes [N, K] stand for, float32."""
        return self.form.dequantized(integers.reshape(-1, self.form.block), self.scales).reshape(integers.shape)

    def columns(self, order: Tensor) -> Rounding:
        """Rounding of columns that go in this order, [1, K]."""
        # Transposed, so that a part of the columns is contiguous.
        scale, offset = (
            None if v is None else v.reshape(self.count, -1).T.contiguous()
            for v in (self.scales.scale, self.scales.offset)
        )
        assert scale is not None
        return rounding(self.form.levels, scale, offset, order[0] // self.form.part)


def rounding(levels: Levels, scale: Tensor, offset: Tensor | None, places: Tensor) -> Rounding:
    """Rounding to scaled levels.

    Args:
        levels: of the codes.
        scale: float32 [G, N].
        offset: what is taken away, [G, N], or None.
        places: the part that each column lies in, [K].
    """
    inverse = torch.where(scale != 0, 1 / scale, 0)

    def rounded(place: int, values: Tensor) -> tuple[Tensor, Tensor]:
        at = places[place]
        if offset is None:
            codes = levels.codes(values * inverse[at])
            return codes, levels.of(codes).mul_(scale[at])
        codes = levels.codes((values + offset[at]).mul_(inverse[at]))
        return codes, levels.of(codes).mul_(scale[at]).sub_(offset[at])

    return rounded


def joined(grids: Sequence[BlockGrid]) -> BlockGrid:
    """Grids of runs of rows as one."""
    return BlockGrid(grids[0].form, scales.joined([g.scales for g in grids]), sum(g.count for g in grids))
