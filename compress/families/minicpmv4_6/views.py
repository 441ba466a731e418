"""What an image becomes: its views, their patches in the mergers' order, and the inputs of the vision graph."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pocketport.compress.families.decoder.host import MASKED
from pocketport.compress.families.minicpmv.config import SliceConfig
from pocketport.compress.families.minicpmv.slicing import Size, position_ids, slice_image, to_patches
from pocketport.compress.families.minicpmv4_6.config import WINDOW, MiniCPMV46Config, ProcessorConfig
from pocketport.errors import InputError


def slicing_of(config: MiniCPMV46Config, processor: ProcessorConfig) -> SliceConfig:
    """The slicing of earlier versions, but in steps of whole vision tokens rather than of patches."""
    return SliceConfig(
        max_slice_nums=processor.max_slice_nums if processor.slice_mode else 1,
        scale_resolution=processor.scale_resolution,
        patch_size=config.vision_config.patch_size * config.side,
    )


@dataclass(frozen=True)
class View:
    """One view as the vision graph takes it, without padding.

    Attributes:
        strip: normalized pixels [3, P, P·L], patches in the order of `patch_order`.
        position_ids: int32 [L].
        target: rows and columns in patches.
        tokens: how many vision tokens it becomes.
    """

    strip: NDArray[np.float32]
    position_ids: NDArray[np.int32]
    target: Size
    tokens: int

    def feeds(self, length: int, mergers: int) -> dict[str, NDArray[Any]]:
        """The inputs of ``vision``, padded to `length` patches; where the tower merges, rows are fewer behind it.

        Raises:
            InputError: it has more patches.
        """
        patch, count = self.strip.shape[1], len(self.position_ids)
        if count > length:
            raise InputError(
                f"a view of {self.target[1]}×{self.target[0]} patches exceeds the {length} that the graphs take",
                where="image", fix="use a less extreme aspect ratio",
            )  # fmt: skip
        feeds: dict[str, NDArray[Any]] = {
            "pixel_values": np.pad(self.strip, ((0, 0), (0, 0), (0, patch * (length - count))))[None],
            "position_ids": np.pad(self.position_ids, (0, length - count)),
            "attention_bias": _bias(count, length),
        }
        if mergers == 2:
            feeds["merged_attention_bias"] = _bias(count // WINDOW**2, length // WINDOW**2)
        return feeds


def views_of(
    image: Image.Image, config: MiniCPMV46Config, processor: ProcessorConfig
) -> tuple[list[View], Size | None]:
    """The views of an image, overview first, and the grid (columns, rows) of its slices."""
    pictures, grid = slice_image(image.convert("RGB"), slicing_of(config, processor))
    return [_view(picture, config) for picture in pictures], grid


def patch_order(target: Size, mergers: int) -> NDArray[np.int64]:
    """The patches of a view, row by row, in the order in which mergers take them [L].

    Vision tokens go row by row; within a token its windows do, and within a window its patches.
    """
    side = WINDOW**mergers
    rows, columns = target
    order = np.arange(rows * columns).reshape(rows // side, side, columns // side, side).transpose(0, 2, 1, 3)
    if mergers == 2:
        order = order.reshape(-1, WINDOW, WINDOW, WINDOW, WINDOW).transpose(0, 1, 3, 2, 4)
    return order.reshape(-1)


def _view(picture: Image.Image, config: MiniCPMV46Config) -> View:
    vision = config.vision_config
    strip, target = to_patches(picture, vision.patch_size)
    order = patch_order(target, config.mergers)
    patches = strip.reshape(3, vision.patch_size, len(order), vision.patch_size)[:, :, order]
    ids = position_ids(target, vision.buckets_per_side)[order].astype(np.int32)
    return View(patches.reshape(strip.shape), ids, target, len(order) // config.side**2)


def _bias(count: int, length: int) -> NDArray[np.float32]:
    bias = np.full((1, 1, length), MASKED, np.float32)
    bias[..., :count] = 0
    return bias
