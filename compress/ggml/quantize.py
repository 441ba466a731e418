"""Matrices to ggml's block formats: nearest codes under the scales that are found for them, or those of GPTQ."""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pocketport.compress.ggml import matrix as matrices
from pocketport.compress.ggml import refine
from pocketport.compress.ggml.blocks import FORMS, Bytes
from pocketport.compress.ggml.matrix import BlockGrid
from pocketport.compress.ggml.types import TYPES
from pocketport.compress.quantized_weights import PackedWeight
from pocketport.compress.torch_device import row_runs
from pocketport.errors import UsageError

CHUNK_ELEMENTS = 1 << 18  # what the caches of two cores hold
LEAST_IMPORTANCE = 1e-4  # of the mean: inputs that were never seen still must not be thrown away


class BlockMatrix:
    """How a matrix [N, K] is written in a block format: a `pocketport.compress.blockwise.gptq.WeightForm`.

    Args:
        kind: a ggml type, one of `FORMS`.
        columns: K.

    Raises:
        UsageError: no such type, or K is not a multiple of its block.
    """

    def __init__(self, kind: str, columns: int) -> None:
        if kind not in FORMS:
            raise UsageError(f"{kind!r} can't be written", where="ggml type", fix=f"choose from {', '.join(FORMS)}")
        if columns % TYPES[kind].block:
            raise UsageError(
                f"{columns} columns are not blocks of {TYPES[kind].block}", where=f"ggml type {kind}",
                fix="choose a type of block 32",
            )  # fmt: skip
        self._form, self._columns = FORMS[kind], columns

    def searched(self, weight: Tensor, importance: Tensor | None = None) -> BlockGrid:
        """See `WeightForm`.

        Raises:
            InputError: a weight is too large for scales in float16.
        """
        return matrices.joined([grid.stored() for grid in self._grids(weight, importance)])

    def refined(
        self, weight: Tensor, hessian: Tensor, integers: Tensor, grid: BlockGrid, sweeps: int
    ) -> tuple[Tensor, BlockGrid]:
        """See `pocketport.compress.ggml.refine.refined`."""
        return refine.refined(weight, hessian, integers, grid, sweeps)

    def stored(self, integers: Tensor, grid: BlockGrid) -> PackedWeight:
        """See `WeightForm`."""
        rows = self._rows()
        parts = [grid.rows(slice(start, start + rows)) for start in range(0, grid.count, rows)]
        data = [part.packed(run) for part, run in zip(parts, row_runs(integers, rows), strict=True)]
        return PackedWeight(self._form.kind, (grid.count, self._columns), np.concatenate(data))

    def nearest(self, weight: Tensor, importance: Tensor | None = None) -> Bytes:
        """The bytes of every row with nearest codes, [N, bytes of a row]; arguments as `searched`."""
        runs = row_runs(weight, self._rows())
        data = [grid.packed(grid.codes(run)) for run, grid in zip(runs, self._grids(weight, importance), strict=True)]
        return np.concatenate(data)

    def _rows(self) -> int:
        return max(1, CHUNK_ELEMENTS // self._columns)

    def _grids(self, weight: Tensor, importance: Tensor | None) -> Iterator[BlockGrid]:
        """Of runs of rows."""
        heed = None
        if importance is not None:
            mean = float(importance.mean()) or 1.0
            heed = (importance / mean).clamp_min(LEAST_IMPORTANCE).reshape(-1, self._form.block)
        for run in row_runs(weight, self._rows()):
            own = None if heed is None else heed.repeat(len(run), 1)
            yield BlockGrid(self._form, self._form.searched(run.reshape(-1, self._form.block), own), len(run))


@torch.inference_mode()
def quantize(kind: str, matrix: NDArray[np.float32], importance: NDArray[np.float32] | None) -> Bytes:
    """Quantize rows of whole blocks.

    Args:
        kind: a ggml type, one of `FORMS`.
        matrix: float32 [rows, K], finite.
        importance: float32 [K] ≥ 0, the mean square of each input; None: all the same.

    Returns:
        uint8 [rows, bytes of a row].

    Raises:
        UsageError: no such type, or K is not a multiple of its block.
    """
    heed = None if importance is None else torch.from_numpy(importance)
    return BlockMatrix(kind, matrix.shape[1]).nearest(torch.from_numpy(np.ascontiguousarray(matrix)), heed)
