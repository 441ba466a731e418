"""Where patches and tokens are: the position inputs of the vision graph, and multimodal positions of a prompt."""

from collections.abc import Iterable, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from pocketport.compress.families.decoder.host import MASKED
from pocketport.compress.families.qwen_vl.config import ROPE_THETA, VisionConfig
from pocketport.compress.families.qwen_vl.images import Grid

Feeds: TypeAlias = dict[str, NDArray[np.float32]]


def vision_positions(grid: Grid, config: VisionConfig, length: int) -> Feeds:
    """The vision graph's inputs but for the pixels, for an image of this grid padded to `length` patches.

    Padding has rotation 0 and is never attended to from a patch; in window attention it is a window of its own.
    """
    row, column = patch_places(grid, config.merge)
    count = len(row)
    cos, sin = _rope(row, column, config.head)
    bias = np.full((1, 1, length), MASKED, np.float32)
    bias[..., :count] = 0
    feeds = {"rope_cos": _padded(cos, length, 1.0), "rope_sin": _padded(sin, length, 0.0), "attention_bias": bias}
    if config.window is not None:
        windows = np.full(length, -1)
        windows[:count] = patch_windows(grid, config)
        feeds["window_bias"] = np.where(windows[:, None] == windows, 0, MASKED).astype(np.float32)[None]
    if config.table_side:
        weights = np.einsum("na,nb->nab", *(_linear(place, size, config.table_side) for place, size in
                                           zip((row, column), grid, strict=True)))  # fmt: skip
        feeds["position_weights"] = _padded(weights.reshape(count, -1).astype(np.float32), length, 0.0)
    return feeds


def patch_places(grid: Grid, merge: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Row and column of each patch [N], in the order in which patches are given to the model."""
    places = np.indices(grid).reshape(2, grid[0] // merge, merge, grid[1] // merge, merge)
    row, column = places.transpose(0, 1, 3, 2, 4).reshape(2, -1)
    return row, column


def patch_windows(grid: Grid, config: VisionConfig) -> NDArray[np.int64]:
    """The attention window of each patch [N], counted row by row; windows are of whole vision tokens."""
    row, column = patch_places(grid, config.merge)
    side = (config.window or 0) // config.merge // config.patch * config.merge
    return row // side * -(-grid[1] // side) + column // side


def token_positions(length: int, images: Iterable[tuple[int, Grid]]) -> NDArray[np.int64]:
    """Temporal, vertical and horizontal position of each token of a prompt [3, length] (arXiv 2409.12191, section 2.1).

    Text counts on all three axes alike; the tokens of an image have its first position in time, and their row and
    column beyond it; what follows counts on from the largest.

    Args:
        length: tokens of the prompt.
        images: of each image, in order, where its tokens begin and its grid in *tokens*.
    """
    runs: list[NDArray[np.int64]] = []
    done = position = 0
    for first, grid in images:
        runs.append(np.tile(np.arange(first - done) + position, (3, 1)))
        position += first - done
        rows, columns = grid
        runs.append(np.stack([np.zeros(rows * columns, np.int64), *np.indices(grid).reshape(2, -1)]) + position)
        position += max(grid)
        done = first + rows * columns
    runs.append(np.tile(np.arange(length - done) + position, (3, 1)))
    return np.concatenate(runs, axis=1)


def _rope(row: NDArray[np.int64], column: NDArray[np.int64], head: int) -> Sequence[NDArray[np.float32]]:
    """Cosines and signed sines [N, head]: a quarter of the channels turns with the row, the next with the column."""
    speeds = ROPE_THETA ** -(np.arange(head // 4) / (head // 4))
    angles = np.concatenate([row[:, None] * speeds, column[:, None] * speeds], axis=1)
    cos, sin = np.cos(angles), np.sin(angles)
    return [np.concatenate(pair, axis=1).astype(np.float32) for pair in ((cos, cos), (-sin, sin))]


def _linear(place: NDArray[np.int64], size: int, side: int) -> NDArray[np.float32]:
    """Weights [N, side] that interpolate a table of `side` entries along an axis of `size`, both ends included.

    In float32, as published: near a table's entry the last bit decides how the share is split.
    """
    source = place.astype(np.float32) * np.float32(side - 1) / np.float32(max(size - 1, 1))
    distance = np.abs(source[:, None] - np.arange(side, dtype=np.float32))
    return np.maximum(np.float32(1) - distance, np.float32(0))


def _padded(array: NDArray[np.float32], length: int, value: float) -> NDArray[np.float32]:
    """Rows of `value` behind `array` up to `length`."""
    return np.pad(array, ((0, length - len(array)), (0, 0)), constant_values=value)
