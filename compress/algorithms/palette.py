"""What palette algorithms work on: a matrix with the channels first, tables for groups of its rows, and what is known."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from pocketport.compress.algorithms.base import Matrix


@dataclass(frozen=True)
class PaletteProblem:
    """A weight to be written as indices into tables.

    Attributes:
        weight: [N, K], output channels first.
        bits: of an index; a table has 2^bits numbers.
        group: rows that share a table, a divisor of N.
        importance: [K] ≥ 0, mean square of each input (diagonal of the Hessian), or None where not known.
        hessian: [K, K], Σ xᵀx, or None.
    """

    weight: Matrix
    bits: int
    group: int
    importance: NDArray[np.float64] | None = None
    hessian: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class PalettizedMatrix:
    """A matrix as indices.

    Attributes:
        indices: uint8 [N, K].
        table: [N / group, 2^bits], float16's numbers in float32, ascending in every row.
    """

    indices: NDArray[np.uint8]
    table: Matrix

    def dense(self) -> Matrix:
        """The weight [N, K] that the indices stand for."""
        groups = self.indices.reshape(len(self.table), -1)
        return np.take_along_axis(self.table, groups.astype(np.intp), axis=1).reshape(self.indices.shape)


PaletteAlgorithm: TypeAlias = Callable[..., PalettizedMatrix]


def in_float16(table: NDArray[np.floating]) -> Matrix:
    """The tables in float16's numbers, as they are stored."""
    return table.astype(np.float16).astype(np.float32)


def cuts(table: NDArray[np.floating]) -> NDArray[np.floating]:
    """Between which numbers each entry of ascending tables is the nearest, [groups, 2^bits − 1]."""
    return np.asarray((table[:, 1:] + table[:, :-1]) / 2, table.dtype)


def nearest(table: Matrix, values: Matrix) -> NDArray[np.uint8]:
    """Of each value [groups, n] the index of the nearest entry of its group's table; the lower one in the middle of two."""
    return np.asarray((values[..., None] > cuts(table)[:, None, :]).sum(axis=-1), np.uint8)
