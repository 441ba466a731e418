"""A few rows of a layer's input, drawn evenly over samples and positions."""

import numpy as np
from numpy.typing import NDArray

BLOCKS = 32  # samples that rows are kept of
VALUES = 1 << 16  # kept of a tensor, about
MOST_ROWS = 64  # of one sample


def drawn_rows(value: NDArray[np.floating], axis: int, sample: int) -> NDArray[np.float32]:
    """Rows [n, C] of one sample's tensor.

    Args:
        value: the tensor.
        axis: dimension of the channels.
        sample: which one it is: what lies at one position may be much the same in all of them, so each gives others.
    """
    rows = np.moveaxis(value, axis, -1)
    positions, channels = value.size // value.shape[axis], value.shape[axis]
    count = min(positions, max(1, min(MOST_ROWS, VALUES // (BLOCKS * channels))))
    chosen = (np.arange(count) * positions // count + sample * 7919) % positions
    drawn: NDArray[np.float32] = rows[np.unravel_index(chosen, rows.shape[:-1])].astype(np.float32)
    return drawn


class DrawnRows:
    """Keeps rows of every n-th sample; n doubles whenever there are too many, so that memory stays bounded."""

    def __init__(self) -> None:
        self._blocks: list[NDArray[np.float32]] = []
        self._period, self._seen = 1, 0

    def add(self, rows: NDArray[np.float32]) -> None:
        """Take in what was drawn from the next sample, [n, C]."""
        if self._seen % self._period == 0:
            self._blocks.append(rows)
            if len(self._blocks) > BLOCKS:
                self._blocks, self._period = self._blocks[::2], 2 * self._period
        self._seen += 1

    def rows(self) -> NDArray[np.float32]:
        """[n, C]."""
        return np.concatenate(self._blocks)
