"""An image on its way through the graphs: the feeds of the vision graph, what the connector makes, its place in a prompt."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketport.compress.families.chat import ImagePrompt
from pocketport.compress.families.decoder.host import DecoderHost
from pocketport.compress.families.decoder.rope import FloatArray
from pocketport.compress.families.qwen_vl.config import VisionConfig
from pocketport.compress.families.qwen_vl.images import Grid
from pocketport.compress.families.qwen_vl.positions import token_positions, vision_positions
from pocketport.errors import InputError


@dataclass(frozen=True)
class SeenImage:
    """What the language model gets of an image.

    Attributes:
        tokens: vision tokens [N,H].
        deepstack: for each of the language model's first layers what is added behind it, [N,H].
        grid: rows and columns of the tokens.
    """

    tokens: FloatArray
    deepstack: Sequence[FloatArray]
    grid: Grid


def vision_feeds(patches: FloatArray, grid: Grid, config: VisionConfig, length: int) -> dict[str, FloatArray]:
    """The vision graph's inputs for an image of `grid` patches, padded to `length`.

    Raises:
        InputError: it has more patches.
    """
    if len(patches) > length:
        raise InputError(
            f"an image of {grid[1]}×{grid[0]} patches exceeds the {length} that the graphs take",
            where="image", fix="use a less extreme aspect ratio, or build the bundle with more patches",
        )  # fmt: skip
    pixels = np.pad(patches, ((0, length - len(patches)), (0, 0)))
    return {"pixel_values": pixels, **vision_positions(grid, config, length)}


def seen_image(results: Mapping[str, NDArray[Any]], grid: Grid, config: VisionConfig) -> SeenImage:
    """What the connector gave for an image of `grid` patches, without padding."""
    rows, columns = (side // config.merge for side in grid)
    names = ["vision_tokens", *(f"deepstack_tokens_{i}" for i in range(len(config.deepstack)))]
    tokens, *deepstack = (results[name][: rows * columns] for name in names)
    return SeenImage(tokens, deepstack, (rows, columns))


def image_prompt(input_ids: list[int], first: int, seen: SeenImage, host: DecoderHost) -> ImagePrompt:
    """A prompt in which the image's tokens begin at `first`.

    Raises:
        InputError: it is longer than the graphs take.
    """
    length, span = len(input_ids), (first, first + len(seen.tokens))
    before = host.padding(length) + first
    extra = {}
    for i, features in enumerate(seen.deepstack):
        added = np.zeros((host.prompt, host.config.hidden_size), np.float32)
        added[before : before + len(features)] = features
        extra[f"deepstack_embeds_{i}"] = added
    positions = token_positions(length, [(first, seen.grid)])
    return ImagePrompt(input_ids, [span], [seen.tokens], 1, positions, extra)
