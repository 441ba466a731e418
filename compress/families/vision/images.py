"""Images as vision towers take them, by the published ``preprocessor_config.json``.

Resizing is Pillow's, as in the processors that the models were published with.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pocketport.errors import InputError

HALF = (0.5, 0.5, 0.5)
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
SEARCH_STEP = 1e-5  # at which NaFlex ends its search for a scale
LARGEST_SCALE = 100.0
MOST_PIXELS = 1 << 14  # of a side: more is a damaged file


@dataclass(frozen=True)
class Normalization:
    """From bytes to numbers.

    Attributes:
        scale: bytes are multiplied by it.
        mean, std: then the mean is taken off and the rest divided, per channel.
    """

    scale: float = 1 / 255
    mean: tuple[float, ...] = HALF
    std: tuple[float, ...] = HALF

    @classmethod
    def of(cls, settings: Mapping[str, Any], default: "Normalization") -> "Normalization":
        """What a preprocessor_config.json says; what it leaves out comes from `default`.

        Raises:
            InputError: mean or deviation is not three numbers.
        """
        scale = number(settings, "rescale_factor", default.scale) if settings.get("do_rescale", True) else 1.0
        if not settings.get("do_normalize", True):
            return cls(scale, (0.0,) * 3, (1.0,) * 3)
        mean, std = (
            settings.get(key) or value for key, value in (("image_mean", default.mean), ("image_std", default.std))
        )
        try:
            found = cls(scale, tuple(map(float, mean)), tuple(map(float, std)))
        except (TypeError, ValueError) as error:
            raise _refused(f"image_mean and image_std must be three numbers each: {error}") from error
        if not len(found.mean) == len(found.std) == 3 or 0 in found.std:
            raise _refused("image_mean and image_std must be three numbers each, deviations not 0")
        return found

    def apply(self, image: Image.Image) -> NDArray[np.float32]:
        """An RGB image as float32 [3,H,W]."""
        pixels = (np.asarray(image) * self.scale).astype(np.float32)  # scaled in float64, as published
        pixels -= np.asarray(self.mean, np.float32)
        pixels /= np.asarray(self.std, np.float32)
        return np.ascontiguousarray(pixels.transpose(2, 0, 1))


SIGNED = Normalization()  # bytes to −1 … 1


@dataclass(frozen=True)
class FixedSize:
    """Every image becomes one of the same size.

    Attributes:
        size: (height, width) after resizing; None: only the shorter side is given.
        shortest: that side.
        crop: (height, width) that is cut out of the middle, with zeros around what is smaller; None: no cut.
        resample: Pillow's filter.
        normalization: from bytes to numbers.
    """

    size: tuple[int, int] | None
    shortest: int
    crop: tuple[int, int] | None
    resample: Image.Resampling
    normalization: Normalization

    @classmethod
    def of(cls, settings: Mapping[str, Any], default: "FixedSize") -> "FixedSize":
        """What a preprocessor_config.json says; what it leaves out comes from `default`.

        Raises:
            InputError: a size has a form that is not known.
        """
        normalization = Normalization.of(settings, default.normalization)
        resample = filter_of(settings, default.resample)
        size, shortest = default.size, default.shortest
        given = settings.get("size")
        if isinstance(given, int):  # older files
            size, shortest = None, _side(given, "size")
        elif isinstance(given, Mapping) and "shortest_edge" in given:
            size, shortest = None, _side(given["shortest_edge"], "size")
        elif given is not None:
            size = _pair(given, "size")
        crop = default.crop
        if "crop_size" in settings or "do_center_crop" in settings:
            wanted = settings.get("do_center_crop", default.crop is not None)
            crop = _pair(settings.get("crop_size", default.crop), "crop_size") if wanted else None
        return cls(size, shortest, crop, resample, normalization)

    def apply(self, image: Image.Image) -> NDArray[np.float32]:
        """`pixel_values` float32 [1,3,H,W]."""
        image = opaque(image)
        height, width = self.size or self._resized(image)
        pixels = self.normalization.apply(_centred(image.resize((width, height), self.resample), self.crop))
        return pixels[None]

    def _resized(self, image: Image.Image) -> tuple[int, int]:
        """The shorter side as given, the longer in proportion, rounded down."""
        short, long = min(image.size), max(image.size)
        longest = int(self.shortest * long / short)
        return (longest, self.shortest) if image.height > image.width else (self.shortest, longest)


@dataclass(frozen=True)
class FlexibleSize:
    """NaFlex: an image keeps its shape, and is as large as a number of patches allows.

    Attributes:
        patch: side of a patch.
        patches: how many there may be.
        resample: Pillow's filter.
        normalization: from bytes to numbers.
    """

    patch: int
    patches: int
    resample: Image.Resampling = Image.Resampling.BILINEAR
    normalization: Normalization = SIGNED

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """(rows, columns) of patches for an image of (width, height): the largest scale that fits, by bisection."""

        def counted(scale: float) -> tuple[int, int]:
            rows, columns = (max(1, math.ceil(side * scale / self.patch)) for side in (size[1], size[0]))
            return rows, columns

        low, high = SEARCH_STEP / 10, LARGEST_SCALE
        while high - low >= SEARCH_STEP:
            middle = (low + high) / 2
            low, high = (middle, high) if math.prod(counted(middle)) <= self.patches else (low, middle)
        found = counted(low)
        if math.prod(found) > self.patches:
            raise InputError(
                f"an image of {size[0]}×{size[1]} does not fit {self.patches} patches at any scale",
                where="image",
                fix="use a less extreme aspect ratio",
            )
        return found

    def apply(self, image: Image.Image) -> tuple[NDArray[np.float32], tuple[int, int]]:
        """Patches as rows of pixels, channels last in each [rows · columns, 3·patch²], and (rows, columns)."""
        image = opaque(image)
        rows, columns = self.grid(image.size)
        pixels = self.normalization.apply(image.resize((columns * self.patch, rows * self.patch), self.resample))
        tiles = pixels.reshape(3, rows, self.patch, columns, self.patch).transpose(1, 3, 2, 4, 0)
        return np.ascontiguousarray(tiles.reshape(rows * columns, -1)), (rows, columns)


def linear_weights(side: int, grid: tuple[int, int]) -> NDArray[np.float32]:
    """The matrix [rows · columns, side²] that resamples a table of side² rows to `grid`.

    Bilinear and antialiased, as ``torch.nn.functional.interpolate`` without aligned corners: a triangle around each
    place, as wide as the step between places where that is more than one row of the table.
    """

    def axis(count: int) -> NDArray[np.float64]:
        step = side / count
        centres = (np.arange(count) + 0.5) * step - 0.5
        weights = (1 - np.abs(np.arange(side) - centres[:, None]) / max(step, 1.0)).clip(0.0)
        normalized: NDArray[np.float64] = weights / weights.sum(1, keepdims=True)
        return normalized

    return np.kron(axis(grid[0]), axis(grid[1])).astype(np.float32)


def opaque(image: Image.Image) -> Image.Image:
    """RGB; what is transparent becomes white."""
    if "A" in image.getbands() or image.info.get("transparency") is not None:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255, 255)), image)
    return image.convert("RGB")


def _centred(image: Image.Image, size: tuple[int, int] | None) -> Image.Image:
    """The middle of an image, black where the image is smaller."""
    if size is None:
        return image
    height, width = size
    top, left = (image.height - height) // 2, (image.width - width) // 2
    return image.crop((left, top, left + width, top + height))


def filter_of(settings: Mapping[str, Any], default: Image.Resampling) -> Image.Resampling:
    """Pillow's filter of the number under ``resample``; InputError when there is none."""
    value = settings.get("resample", default)
    try:
        return Image.Resampling(value)
    except ValueError as error:
        raise _refused(f"resample {value!r} is no filter of Pillow's") from error


def number(settings: Mapping[str, Any], key: str, default: float) -> float:
    """A finite number above 0; InputError when it is something else."""
    value = settings.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise _refused(f"{key} {value!r} is not a number above 0")
    return float(value)


def _pair(value: Any, key: str) -> tuple[int, int]:
    if isinstance(value, tuple):
        return value[0], value[1]
    if isinstance(value, Mapping) and {"height", "width"} <= value.keys():
        return _side(value["height"], key), _side(value["width"], key)
    side = _side(value, key)
    return side, side


def _side(value: Any, key: str) -> int:
    if type(value) is not int or not 0 < value <= MOST_PIXELS:
        raise _refused(f"{key} {value!r} is not a size")
    return value


def _refused(why: str) -> InputError:
    return InputError(why, where="preprocessor_config.json", fix="give the published file")
