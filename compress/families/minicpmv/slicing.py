"""Adaptive slicing of images as MiniCPM-V publishes it (arXiv 2408.01800, section 3.1); numpy and PIL only.

Sizes are ``(width, height)`` in pixels and grids ``(columns, rows)``, as in PIL; target sizes are
``(rows, columns)`` in patches, as the model takes them.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pocketport.compress.families.minicpmv.config import SliceConfig

Size = tuple[int, int]
MEAN = 0.5
STD = 0.5


@dataclass(frozen=True)
class SlicePlan:
    """How one image is cut: the overview's size, then (if `grid` is not None) the refined image's size."""

    overview: Size
    grid: Size | None
    refined: Size | None

    @property
    def slice_size(self) -> Size | None:
        """Size of one slice in pixels."""
        if self.grid is None or self.refined is None:
            return None
        return self.refined[0] // self.grid[0], self.refined[1] // self.grid[1]

    @property
    def sizes(self) -> list[Size]:
        """Size of each view in pixels, overview first."""
        slices = [] if self.grid is None or self.slice_size is None else [self.slice_size] * math.prod(self.grid)
        return [self.overview, *slices]


def ensure_divide(length: float, divisor: int) -> int:
    """The multiple of `divisor` nearest to `length`, at least one."""
    return max(round(length / divisor) * divisor, divisor)


def find_best_resize(size: tuple[float, float], config: SliceConfig, *, allow_upscale: bool = False) -> Size:
    """The size in whole patches, of about ``scale_resolution ** 2`` pixels and the aspect ratio of `size`."""
    width, height = size
    if width * height > config.scale_resolution**2 or allow_upscale:
        ratio = width / height
        height = int(config.scale_resolution / math.sqrt(ratio))
        width = int(height * ratio)
    return ensure_divide(width, config.patch_size), ensure_divide(height, config.patch_size)


def get_refine_size(size: Size, grid: Size, config: SliceConfig) -> Size:
    """The size of the image that `grid` then cuts into equal slices of whole patches."""
    cell = (ensure_divide(size[0], grid[0]) / grid[0], ensure_divide(size[1], grid[1]) / grid[1])
    best = find_best_resize(cell, config, allow_upscale=True)
    return best[0] * grid[0], best[1] * grid[1]


def candidate_grids(slices: int, max_slices: int) -> list[Size]:
    """C(N-1), C(N) and C(N+1) in one list: all factorizations, except those of 1 and above `max_slices`."""
    counts = [n for n in (slices - 1, slices, slices + 1) if 1 < n <= max_slices]
    return [(columns, n // columns) for n in counts for columns in range(1, n + 1) if n % columns == 0]


def best_grid(size: Size, config: SliceConfig) -> Size | None:
    """The grid with the highest score S = -|log(W/H) - log(columns/rows)|; None if one slice is enough."""
    area = size[0] * size[1] / config.scale_resolution**2
    slices = min(math.ceil(area), config.max_slice_nums)
    if slices <= 1:
        return None
    aspect = math.log(size[0] / size[1])
    grids = candidate_grids(slices, config.max_slice_nums)
    return min(grids, key=lambda grid: abs(aspect - math.log(grid[0] / grid[1])))


def plan_slices(size: Size, config: SliceConfig) -> SlicePlan:
    """Decide how an image of `size` is resized and cut."""
    grid = best_grid(size, config)
    if grid is None:
        return SlicePlan(find_best_resize(size, config, allow_upscale=True), None, None)
    return SlicePlan(find_best_resize(size, config), grid, get_refine_size(size, grid, config))


def slice_image(image: Image.Image, config: SliceConfig) -> tuple[list[Image.Image], Size | None]:
    """Cut `image`: the overview first, then the slices row by row, and the grid."""
    plan = plan_slices(image.size, config)
    views = [image.resize(plan.overview, Image.Resampling.BICUBIC)]
    if plan.grid is None or plan.refined is None or plan.slice_size is None:
        return views, None
    refined = image.resize(plan.refined, Image.Resampling.BICUBIC)
    width, height = plan.slice_size
    for top in range(0, plan.refined[1], height):
        for left in range(0, plan.refined[0], width):
            views.append(refined.crop((left, top, left + width, top + height)))
    return views, plan.grid


def to_patches(view: Image.Image, patch_size: int) -> tuple[NDArray[np.float32], Size]:
    """Normalize one view to ±1 and lay its L patches out in a NaViT strip.

    Returns:
        The strip, ``[3, patch, L * patch]``, patches in row-major order, and ``(rows, columns)``.
    """
    pixels = (np.asarray(view.convert("RGB"), dtype=np.float32) / 255.0 - MEAN) / STD
    rows, columns = pixels.shape[0] // patch_size, pixels.shape[1] // patch_size
    tiles = pixels.reshape(rows, patch_size, columns, patch_size, 3)
    strip = tiles.transpose(4, 1, 0, 2, 3).reshape(3, patch_size, rows * columns * patch_size)
    return np.ascontiguousarray(strip), (rows, columns)


def position_ids(target: Size, buckets: int) -> NDArray[np.int64]:
    """Indices into the ``buckets ** 2`` position table for a grid of `target` patches, ``[rows * columns]``.

    The published rule (Idefics2's): fractional coordinates i/n, bucketized by the table's cell boundaries k/b, here in
    exact arithmetic. Torch's float32 moves some coordinates that lie exactly on a boundary by one cell, and not the
    same ones in its vectorized and its scalar loop.
    """
    rows, columns = (np.arange(count) * buckets // count for count in target)
    return (rows[:, None] * buckets + columns[None, :]).reshape(-1).astype(np.int64)


def sincos_positions(dim: int, target: Size) -> NDArray[np.float32]:
    """The resampler's fixed 2D position embedding for `target` patches, ``[rows * columns, dim]``.

    As published: the first half of the channels encodes the column, the second half the row; in each half
    sines come before cosines.
    """
    rows, columns = target
    omega = 1.0 / 10000 ** (np.arange(dim // 4, dtype=np.float32) / (dim / 4.0))
    grid_w, grid_h = np.meshgrid(np.arange(columns, dtype=np.float32), np.arange(rows, dtype=np.float32))
    halves = []
    for coordinate in (grid_w, grid_h):
        angles = coordinate.reshape(-1, 1) * omega[None, :]
        halves += [np.sin(angles), np.cos(angles)]
    return np.concatenate(halves, axis=1).astype(np.float32)


def max_patches(config: SliceConfig, *, max_aspect: float = 4.0) -> int:
    """The largest patch count of any view over all image sizes with aspect ratio up to `max_aspect`.

    Brute force over every size up to the largest area that still changes the number of slices, twice over:
    beyond it only the aspect ratio matters.
    """
    limit = 2 * config.max_slice_nums * config.scale_resolution**2
    side = math.ceil(math.sqrt(limit * max_aspect))
    largest = 0
    for width in range(1, side + 1):
        lowest = max(1, math.ceil(width / max_aspect))
        highest = min(int(width * max_aspect), limit // width)
        for height in range(lowest, highest + 1):
            for view in plan_slices((width, height), config).sizes[:2]:
                largest = max(largest, (view[0] // config.patch_size) * (view[1] // config.patch_size))
    return largest


@dataclass(frozen=True)
class ViewBatch:
    """N views padded to L patches, as the vision graph takes them.

    Attributes:
        strip: normalized pixels, ``[N, 3, patch, L * patch]``, zero in the padding.
        position_ids: ``[N, L]``, zero in the padding.
        positions: the resampler's embedding, ``[N, L, dim]``, zero in the padding.
        valid: ``[N, L]``, False in the padding.
    """

    strip: NDArray[np.float32]
    position_ids: NDArray[np.int64]
    positions: NDArray[np.float32]
    valid: NDArray[np.bool_]


def pack_views(
    views: list[Image.Image], *, patch_size: int, buckets: int, dim: int, length: int | None = None
) -> ViewBatch:
    """Lay out `views` for the model, padded to `length` patches (to the longest view if None)."""
    strips, targets = zip(*(to_patches(view, patch_size) for view in views), strict=True)
    counts = [rows * columns for rows, columns in targets]
    size = max(counts) if length is None else length
    batch = ViewBatch(
        strip=np.zeros((len(views), 3, patch_size, size * patch_size), dtype=np.float32),
        position_ids=np.zeros((len(views), size), dtype=np.int64),
        positions=np.zeros((len(views), size, dim), dtype=np.float32),
        valid=np.zeros((len(views), size), dtype=np.bool_),
    )
    for row, (strip, target, count) in enumerate(zip(strips, targets, counts, strict=True)):
        batch.strip[row, :, :, : count * patch_size] = strip
        batch.position_ids[row, :count] = position_ids(target, buckets)
        batch.positions[row, :count] = sincos_positions(dim, target)
        batch.valid[row, :count] = True
    return batch
