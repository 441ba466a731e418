"""How an image is cut: scaled to a longest side, stretched to whole tiles, cut by rows, and once more as a whole.

Resizing is Pillow's, as in the processors that the models were published with.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pocketport.compress.families.vision.images import MOST_PIXELS, SIGNED, Normalization, filter_of, opaque
from pocketport.errors import InputError

Size = tuple[int, int]  # (height, width)
LARGEST_SIDE = 4096
LONGEST, TILE = 1456, 364  # where a file does not say


@dataclass(frozen=True)
class TileSettings:
    """What the processor does.

    Attributes:
        longest: pixels of the longest side after scaling.
        tile: pixels of a tile's sides.
        split: whether images are cut at all; otherwise each becomes one tile.
        resample: Pillow's filter.
        normalization: from bytes to numbers.
    """

    longest: int
    tile: int
    split: bool = True
    resample: Image.Resampling = Image.Resampling.LANCZOS
    normalization: Normalization = SIGNED

    @classmethod
    def from_hf(cls, settings: Mapping[str, Any], where: str = "preprocessor_config.json") -> "TileSettings":
        """A published ``preprocessor_config.json``.

        Raises:
            InputError: a size is missing, or images are not scaled: then there is no bound on their tiles.
        """
        sides = []
        for key, usual in (("size", LONGEST), ("max_image_size", TILE)):
            given = settings.get(key, {"longest_edge": usual})
            sides.append(given.get("longest_edge") if isinstance(given, Mapping) else None)
        longest, tile = (side if type(side) is int else 0 for side in sides)
        if not 0 < longest <= MOST_PIXELS or not 0 < tile <= MOST_PIXELS or not settings.get("do_resize", True):
            raise InputError(
                "images must be scaled to size.longest_edge and cut into max_image_size.longest_edge",
                where=where,
                fix="give the published file",
            )
        split = bool(settings.get("do_image_splitting", True))
        return cls(
            longest, tile, split, filter_of(settings, Image.Resampling.LANCZOS), Normalization.of(settings, SIGNED)
        )

    @property
    def widest(self) -> Size:
        """The grid (rows, columns) of the images that are cut into most tiles; (0, 0): no image is cut."""
        side = math.ceil(min(self.longest, LARGEST_SIDE) / self.tile)
        return (side, side) if self.split and side > 1 else (0, 0)

    def smaller(self) -> "TileSettings":
        """The same with one tile fewer along the longest side, and at last without cutting."""
        side = self.widest[0] - 1
        return replace(self, longest=side * self.tile, split=side > 1)

    def stretched(self, size: Size) -> tuple[Size, Size]:
        """What an image of this size is scaled to, and then stretched to, so that its sides are whole tiles."""
        scaled = _scaled(size, self.longest)
        height, width = scaled
        aspect = width / height
        if width >= height:
            width = math.ceil(width / self.tile) * self.tile
            height = math.ceil(int(width / aspect) / self.tile) * self.tile
        else:
            height = math.ceil(height / self.tile) * self.tile
            width = math.ceil(int(height * aspect) / self.tile) * self.tile
        return scaled, (height, width)

    def cut(self, image: Image.Image) -> tuple[list[Image.Image], Size]:
        """The tiles by rows, the whole image last, all RGB; and the grid (rows, columns), (0, 0) where there is one."""
        image, whole = opaque(image), (self.tile, self.tile)
        scaled, (height, width) = self.stretched((image.height, image.width))
        image = image.resize(scaled[::-1], self.resample)
        if not self.split:
            return [image.resize(whole, self.resample)], (0, 0)
        image = image.resize((width, height), self.resample)
        rows, columns = height // self.tile, width // self.tile
        if rows == columns == 1:
            return [image], (0, 0)
        corners = ((x * self.tile, y * self.tile) for y in range(rows) for x in range(columns))
        tiles = [image.crop((x, y, x + self.tile, y + self.tile)) for x, y in corners]
        return [*tiles, image.resize(whole, self.resample)], (rows, columns)

    def pixels(self, tile: Image.Image) -> NDArray[np.float32]:
        """`pixel_values` float32 [1,3,T,T]."""
        return self.normalization.apply(tile)[None]


def _scaled(size: Size, longest: int) -> Size:
    """The longest side as given, the other in proportion: rounded down and then up to even, at least 1."""
    height, width = size
    aspect = width / height
    if width >= height:
        short = int(longest / aspect)
        scaled = (max(short + short % 2, 1), longest)
    else:
        short = int(longest * aspect)
        scaled = (longest, max(short + short % 2, 1))
    if max(scaled) <= LARGEST_SIDE:
        return scaled
    aspect = scaled[1] / scaled[0]
    if width >= height:
        return max(int(LARGEST_SIDE / aspect), 1), LARGEST_SIDE
    return LARGEST_SIDE, max(int(LARGEST_SIDE * aspect), 1)
