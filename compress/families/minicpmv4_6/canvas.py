"""Version 4.7's positions: an image lies on a canvas in the plane of the second and third rotary position.

The overview is stretched over the same canvas that the slices tile, so that both say where something is; markers lie
at the corners of what they open and close. All of an image shares one first position, and text goes on behind the
canvas's longer side.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pocketport.compress.families.chat import Span
from pocketport.compress.families.minicpmv.slicing import Size
from pocketport.compress.families.minicpmv4_6.config import MarkerTokens

Integers = NDArray[np.int64]


def canvas_positions(
    ids: Sequence[int], spans: Sequence[Span], sizes: Sequence[Size], grid: Size | None, markers: MarkerTokens
) -> Integers:
    """Positions (time, vertical, horizontal) of a prompt with one image, [3,T].

    Args:
        ids: the prompt's tokens, T of them.
        spans: where the views' vision tokens stand, overview first.
        sizes: rows and columns of vision tokens of each view.
        grid: columns and rows of the slices.
        markers: tokens around views.
    """
    start, end = spans[0][0] - 1, _closed(ids, spans[-1][1], markers)
    columns, rows = grid or (1, 1)
    cell = sizes[1] if grid else sizes[0]
    height, width = rows * cell[0], columns * cell[1]
    positions = np.tile(np.arange(len(ids), dtype=np.int64), (3, 1))  # right up to the image
    positions[:, start:end] = start
    positions[1:, start] = max(start - 1, 0)  # the opening marker: just outside the corner
    first, last = spans[0]
    if last < end:
        positions[1:, last] = start + height, start + width
    positions[1:, first:last] = start + _plane(sizes[0], (height, width))
    for index, ((first, last), size) in enumerate(zip(spans[1:], sizes[1:], strict=True)):
        row, column = divmod(index, columns)
        corner = np.array([row * cell[0], column * cell[1]]) + start
        positions[1:, first - 1] = corner
        positions[1:, first:last] = corner[:, None] + _plane(size, size)
        if last < end:
            positions[1:, last] = corner + size - 1
        if column == columns - 1 and row < rows - 1:  # the newline: just past the right edge of its row
            following = spans[index + 2][0] - 1
            positions[1:, last + 1 : following] = [[corner[0] + size[0] - 1], [start + width]]
    positions[:, end:] = np.arange(len(ids) - end) + start + max(height, width) + 1
    return positions


def _closed(ids: Sequence[int], end: int, markers: MarkerTokens) -> int:
    """Behind the markers and newlines that follow the last view."""
    closing = set(markers.model_dump().values())
    while end < len(ids) and ids[end] in closing:
        end += 1
    return end


def _plane(size: Size, canvas: Size) -> Integers:
    """Row and column on the canvas of each of rows × columns tokens that cover it evenly, [2, tokens]."""
    axes = [_spread(count, length) for count, length in zip(size, canvas, strict=True)]
    return np.stack(np.meshgrid(*axes, indexing="ij")).reshape(2, -1)


def _spread(count: int, length: int) -> Integers:
    """`count` whole numbers from 0 to `length` − 1, in float32 from both ends as torch's linspace."""
    step = np.float32(length - 1) / np.float32(max(count - 1, 1))
    index = np.arange(count)
    rising, falling = step * index.astype(np.float32), np.float32(length - 1) - step * index[::-1].astype(np.float32)
    return np.rint(np.where(index < max(count // 2, count == 1), rising, falling)).astype(np.int64)
