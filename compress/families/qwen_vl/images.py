"""What an image becomes: its size in whole vision tokens, and its patches; numpy and PIL only.

The rules are those of the published processors (transformers, ``Qwen2VLImageProcessor``). Sizes are
``(width, height)`` in pixels, as in PIL; grids are ``(rows, columns)`` in patches, as the model takes them.
"""

import math
from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pocketport.errors import InputError

Grid: TypeAlias = tuple[int, int]
WIDEST = 200  # the processor takes no aspect ratio beyond


class ImageSettings(BaseModel):
    """The keys of ``preprocessor_config.json`` that decide what an image becomes.

    Attributes:
        patch_size: side of a patch in pixels.
        temporal_patch_size: how often an image is repeated to fill a patch.
        merge_size: this many patches squared become one vision token.
        min_pixels, max_pixels: bounds of an image's area; also written ``size: {shortest_edge, longest_edge}``.
        image_mean, image_std: of the channels, as a share of white.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    patch_size: int = Field(14, gt=0)
    temporal_patch_size: int = Field(2, gt=0)
    merge_size: int = Field(2, gt=0)
    min_pixels: int = Field(56 * 56, gt=0)
    max_pixels: int = Field(28 * 28 * 1280, gt=0)
    image_mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    image_std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)

    @classmethod
    def from_hf(cls, published: Mapping[str, Any], where: str) -> "ImageSettings":
        """Read a ``preprocessor_config.json``.

        Raises:
            InputError: a key has a wrong value, or a step is switched off that the graphs count on.
        """
        given = {key: value for key, value in published.items() if value is not None}
        size = given.get("size")
        if isinstance(size, Mapping):
            bounds = {"min_pixels": size.get("shortest_edge"), "max_pixels": size.get("longest_edge")}
            given = {**{key: value for key, value in bounds.items() if value is not None}, **given}
        fixed = {"do_resize": True, "do_rescale": True, "do_normalize": True, "resample": int(Image.Resampling.BICUBIC)}
        for key, value in fixed.items():
            if given.get(key, value) != value:
                raise InputError(f"{given[key]!r} is not supported", where=f"{where}, {key}", fix=f"set it to {value}")
        try:
            return cls.model_validate(given)
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(map(str, first["loc"]))
            raise InputError(
                str(first["msg"]), where=f"{where}, {key}", fix="give the published preprocessor_config.json"
            ) from error

    @property
    def token(self) -> int:
        """Side of a vision token in pixels."""
        return self.patch_size * self.merge_size


def resized(size: tuple[int, int], settings: ImageSettings) -> tuple[int, int]:
    """The size to which an image is brought: whole vision tokens, an area within the bounds, about the same aspect.

    Raises:
        InputError: one side is more than 200 times the other.
    """
    width, height = size
    if max(size) > WIDEST * min(size):
        raise InputError(
            f"{width}×{height} pixels is too extreme an aspect ratio",
            where="image",
            fix=f"crop it: at most {WIDEST} to 1",
        )
    token, area = settings.token, width * height
    sides = [round(side / token) * token for side in size]
    if math.prod(sides) > settings.max_pixels:
        shrink = math.sqrt(area / settings.max_pixels)
        sides = [max(token, math.floor(side / shrink / token) * token) for side in size]
    elif math.prod(sides) < settings.min_pixels:
        grow = math.sqrt(settings.min_pixels / area)
        sides = [math.ceil(side * grow / token) * token for side in size]
    return sides[0], sides[1]


def to_patches(image: Image.Image, settings: ImageSettings) -> tuple[NDArray[np.float32], Grid]:
    """Resize and normalize an image and cut it into patches.

    Returns:
        The patches [N, 3 · temporal · P · P], those of one vision token one behind another, tokens row by row; and
        the grid.

    Raises:
        InputError: as `resized`.
    """
    size = resized(image.size, settings)
    pixels = np.asarray(image.convert("RGB").resize(size, Image.Resampling.BICUBIC)).reshape(-1, 3)
    shades = (np.arange(256) / 255).astype(np.float32)[:, None]
    mean, std = (np.array(channels, np.float32) for channels in (settings.image_mean, settings.image_std))
    normalized = (shades - mean) / std
    pixels = np.take_along_axis(normalized, pixels, axis=0)
    patch, merge = settings.patch_size, settings.merge_size
    rows, columns = size[1] // patch, size[0] // patch
    tiles = pixels.reshape(rows // merge, merge, patch, columns // merge, merge, patch, 3)
    tiles = tiles.transpose(0, 3, 1, 4, 6, 2, 5)[:, :, :, :, :, None]
    repeated = np.broadcast_to(tiles, (*tiles.shape[:5], settings.temporal_patch_size, patch, patch))
    return np.ascontiguousarray(repeated).reshape(rows * columns, -1), (rows, columns)
