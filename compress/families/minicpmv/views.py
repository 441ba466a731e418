"""What an image becomes in each version: its views, and the positions of their patches."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pocketport.compress.families.minicpmv.config import MiniCPMVConfig
from pocketport.compress.families.minicpmv.slicing import Size, position_ids, sincos_positions, slice_image
from pocketport.compress.families.minicpmv.versions import version_of

Feeds = dict[str, NDArray[Any]]
SMOOTH, SHARP = -0.5, -0.75  # Keys' parameter a, with and without antialiasing, as torch (and PIL) choose it


def views_of(image: Image.Image, config: MiniCPMVConfig) -> tuple[list[Image.Image], Size | None]:
    """The views of an image in RGB, overview first, and the grid (columns, rows) of its slices.

    Version 1.0 resizes every image to one square. Without ``slice_mode`` later versions take an image as it is, but
    for what is left of it beyond whole patches.
    """
    image = image.convert("RGB")
    if version_of(config).name == "1.0":
        return [image.resize((config.image_size, config.image_size), Image.Resampling.BICUBIC)], None
    if config.slice_mode:
        return slice_image(image, config.slice_config)
    patch = config.vision_config.patch_size
    width, height = (max(side // patch, 1) * patch for side in image.size)
    return [image.crop((0, 0, width, height))], None


def vision_positions(target: Size, config: MiniCPMVConfig) -> Feeds:
    """The vision graph's position input for a view of `target` (rows, columns) patches, without padding.

    ``position_ids`` int32 [L], or for towers whose table is resampled ``position_weights`` [L, table].
    """
    buckets = config.vision_config.buckets_per_side
    if version_of(config).timm:
        return {"position_weights": resampling(buckets, target, antialias=True)}
    return {"position_ids": position_ids(target, buckets).astype(np.int32)}


def connector_positions(target: Size, config: MiniCPMVConfig) -> Feeds:
    """The connector's position input, without padding: ``position_embeds`` [L,H], or ``position_weights`` [L,Q]."""
    if version_of(config).resampled_positions:
        side = round(config.query_num**0.5)
        return {"position_weights": resampling(side, target, antialias=False)}
    return {"position_embeds": sincos_positions(config.hidden_size, target)}


def resampling(side: int, target: Size, *, antialias: bool) -> NDArray[np.float32]:
    """The matrix that resamples a table of `side`² rows to `target` (rows, columns), [rows · columns, side²].

    Bicubic as ``torch.nn.functional.interpolate`` without aligned corners (Keys 1981); a table of the right size
    stays as it is.
    """
    if target == (side, side):
        return np.eye(side * side, dtype=np.float32)
    axis = _antialiased if antialias else _interpolated
    return np.kron(axis(side, target[0]), axis(side, target[1])).astype(np.float32)


def _cubic(distance: NDArray[np.float64], a: float) -> NDArray[np.float64]:
    x = np.abs(distance)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = a * (((x - 5) * x + 8) * x - 4)
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


def _antialiased(source: int, target: int) -> NDArray[np.float64]:
    """Weights of one axis [target, source]; when shrinking the kernel is as much wider."""
    scale = source / target
    width = max(scale, 1.0)
    centres = scale * (np.arange(target) + 0.5)
    first = np.maximum((centres - 2 * width + 0.5).astype(np.int64), 0)
    last = np.minimum((centres + 2 * width + 0.5).astype(np.int64), source)
    columns = np.arange(source)
    weights = _cubic((columns[None] - centres[:, None] + 0.5) / width, SMOOTH)
    weights *= (columns >= first[:, None]) & (columns < last[:, None])
    normalized: NDArray[np.float64] = weights / weights.sum(1, keepdims=True)
    return normalized


def _interpolated(source: int, target: int) -> NDArray[np.float64]:
    """Weights of one axis [target, source] of plain bicubic interpolation; beyond the border its value repeats."""
    places = (np.arange(target) + 0.5) * (source / target) - 0.5
    weights = np.zeros((target, source))
    for offset in range(-1, 3):
        column = np.floor(places).astype(np.int64) + offset
        np.add.at(weights, (np.arange(target), column.clip(0, source - 1)), _cubic(places - column, SHARP))
    return weights
