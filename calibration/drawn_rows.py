"""A few rows of a layer's input, drawn evenly over samples and positions."""

import numpy as np
from numpy.typing import NDArray

BLOCKS = 32  # samples that rows are kept of
VALUES = 1 << 16  # kept of a tensor, about
MOST_ROWS = 64  # of one sample


class DrawnRows:
    """Keeps rows of every n-th sample; n doubles whenever there are too many, so that memory stays bounded."""

    def __init__(self) -> None:
        self._blocks: list[NDArray[np.float32]] = []
        self._period, self._seen = 1, 0

    def add(self, value: NDArray[np.floating], axis: int) -> None:
        """Draw from the next sample.

        Args:
            value: its tensor.
            axis: dimension of the channels.
        """
        if self._seen % self._period == 0:
            rows = np.moveaxis(value, axis, -1)
            positions, channels = value.size // value.shape[axis], value.shape[axis]
            count = min(positions, max(1, min(MOST_ROWS, VALUES // (BLOCKS * channels))))
            # Other positions in every sample: what lies at one may be much the same in all of them.
            chosen = (np.arange(count) * positions // count + self._seen * 7919) % positions
            self._blocks.append(rows[np.unravel_index(chosen, rows.shape[:-1])].astype(np.float32))
            if len(self._blocks) > BLOCKS:
                self._blocks, self._period = self._blocks[::2], 2 * self._period
        self._seen += 1

    def rows(self) -> NDArray[np.float32]:
        """[n, C]."""
        return np.concatenate(self._blocks)
