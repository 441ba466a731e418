"""The host's part: images and texts to feeds, and vectors to scores."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pocketport.compress.bundle import ModelBundle
from pocketport.compress.executors.ort_executor import Arrays
from pocketport.compress.families.decoder.host import Rows
from pocketport.compress.families.registry import ImageFeeds
from pocketport.compress.families.vision.config import CLIP, NAFLEX, EncodersConfig
from pocketport.compress.families.vision.graphs import FEATURES, UNSEEN
from pocketport.compress.families.vision.images import (
    CLIP_MEAN,
    CLIP_STD,
    SIGNED,
    FixedSize,
    FlexibleSize,
    Normalization,
    filter_of,
    linear_weights,
)
from pocketport.compress.sources.folder import read_json_object
from pocketport.errors import InputError

LEGACY_END = 2  # CLIP files of before 2023 give this for the end of a text; its id is the greatest instead


class EncodersHost:
    """What the host computes for the graphs of one bundle.

    Args:
        config: the bundle's ``config``.
        files: the bundle's files; ``preprocessor_config.json`` is read where there is one.

    Raises:
        InputError: that file is damaged, or makes images of another size than the graphs take.
    """

    def __init__(self, config: Mapping[str, Any], files: Mapping[str, Path]) -> None:
        self.config = EncodersConfig.from_hf(config["model"])
        self.score = float(config.get("logit_scale", 0.0)), float(config.get("logit_bias", 0.0))
        self.patches = int(config["patches"])
        name = "preprocessor_config.json"
        settings = read_json_object(files[name]) if name in files else {}
        vision = self.config.vision
        side = (vision.image_size, vision.image_size)
        if self.config.kind == NAFLEX:
            resample = filter_of(settings, Image.Resampling.BILINEAR)
            normalization = Normalization.of(settings, SIGNED)
            self.images: FixedSize | FlexibleSize = FlexibleSize(
                vision.patch_size, self.patches, resample, normalization
            )
            return
        default = FixedSize(side, 0, None, Image.Resampling.BICUBIC, SIGNED)
        if self.config.kind == CLIP:
            clip = Normalization(mean=CLIP_MEAN, std=CLIP_STD)
            default = FixedSize(None, vision.image_size, side, Image.Resampling.BICUBIC, clip)
        self.images = FixedSize.of(settings, default)
        if (self.images.crop or self.images.size) != side:
            raise InputError(
                f"images become {self.images.crop or self.images.size}, the model takes {side}",
                where=name,
                fix="give the preprocessor_config.json that belongs to this checkpoint",
            )

    def image_feeds(self, image: Image.Image) -> dict[str, NDArray[Any]]:
        """The inputs of ``vision``.

        Raises:
            InputError: the image is too long and thin.
        """
        if isinstance(self.images, FixedSize):
            return {"pixel_values": self.images.apply(image)}
        pixels, grid = self.images.apply(image)
        rows = ((0, self.patches - len(pixels)), (0, 0))
        bias = np.full((1, 1, self.patches), UNSEEN, np.float32)
        bias[..., : len(pixels)] = 0
        side = int(self.config.vision.num_patches**0.5)
        return {
            "pixel_values": np.pad(pixels, rows),
            "position_weights": np.pad(linear_weights(side, grid), rows),
            "attention_bias": bias,
        }

    def text_feeds(self, tokens: Sequence[int], length: int, padding: int) -> dict[str, NDArray[Any]]:
        """The inputs of ``text``.

        Args:
            tokens: a text with its markers, by the model's tokenizer.
            length: S.
            padding: the id that fills the rest.

        Raises:
            InputError: the text is empty or too long, or CLIP finds no end in it.
        """
        if not 1 <= len(tokens) <= length:
            raise InputError(
                f"the text has {len(tokens)} tokens, the graph takes 1 to {length}", where="text", fix="shorten it"
            )
        text = self.config.text
        ids = np.full(length, padding, np.int32)
        ids[: len(tokens)] = tokens
        if text is None or not 0 <= ids.min() <= ids.max() < text.vocab_size:
            raise InputError(
                "it holds tokens outside the vocabulary", where="text", fix="use the model's own tokenizer"
            )
        if self.config.kind != CLIP:
            return {"input_ids": ids}
        ends = ids == (ids.max() if text.eos_token_id == LEGACY_END else text.eos_token_id)
        if not ends.any():
            raise InputError("it has no end of text", where="text", fix="use the model's own tokenizer")
        weights = np.zeros((1, length), np.float32)
        weights[0, int(ends.argmax())] = 1
        return {"input_ids": ids, "pooling_weights": weights}

    def logits(self, images: NDArray[np.floating], texts: NDArray[np.floating]) -> NDArray[np.float32]:
        """Scores [images, texts] of vectors [n,P]: cosines, scaled and shifted as the model learned."""
        first, second = (v / np.linalg.norm(v, axis=-1, keepdims=True) for v in (images, texts))
        scale, shift = self.score
        return np.asarray(first @ second.T * np.exp(scale) + shift, np.float32)


def image_feeds(bundle: ModelBundle) -> ImageFeeds | None:
    """As `Family.image_feeds`: a tower that stands alone needs nothing but images."""
    if list(bundle.components) != ["vision"]:
        return None
    host = EncodersHost(bundle.config, bundle.files)
    return lambda image: [("vision", host.image_feeds(image))]


def meaningful_rows(component: str, feeds: Arrays, outputs: Iterable[str]) -> Rows:
    """As `Family.meaningful_rows`: the patches of an image that keeps its shape."""
    if "attention_bias" not in feeds or FEATURES not in outputs:
        return {}
    return {FEATURES: (0, 0, int((np.asarray(feeds["attention_bias"], np.float32) > UNSEEN / 2).sum()))}
