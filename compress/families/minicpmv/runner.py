"""The host side of MiniCPM-V: from image and question to the language model's prompt."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pocketport.compress.executors.ort_executor import Arrays, Executor
from pocketport.compress.families.chat import ImageChat, ImagePrompt
from pocketport.compress.families.decoder.host import MASKED, DecoderHost, Rows, prompt_rows
from pocketport.compress.families.decoder.rope import FloatArray
from pocketport.compress.families.minicpmv.config import MiniCPMVConfig
from pocketport.compress.families.minicpmv.prompt import encode_prompt, load_tokenizer, stop_tokens
from pocketport.compress.families.minicpmv.slicing import to_patches
from pocketport.compress.families.minicpmv.versions import decoder_of, version_of
from pocketport.compress.families.minicpmv.views import connector_positions, views_of, vision_positions
from pocketport.errors import InputError


class MultimodalRunner(ImageChat):
    """Slicing, vision and connector, and the prompt of each version.

    Args:
        executors: one for each of ``vision``, ``connector``, ``embed``, ``prefill`` and ``decode``; only their
            ``run(feeds)`` is used.
        config: the bundle's ``config``.
        files: the bundle's files; ``tokenizer.json`` is read.

    Raises:
        InputError: the tokenizer is damaged, or not of this family.
    """

    def __init__(self, executors: Mapping[str, Executor], config: Mapping[str, Any], files: Mapping[str, Path]) -> None:
        self.config = MiniCPMVConfig.model_validate(config["model"])
        self.patches = int(config["patches"])
        self._template = version_of(self.config).template
        tokenizer = load_tokenizer(files["tokenizer.json"])
        if tokenizer.token_to_id(self._template.stops[0]) is None:
            raise InputError(
                f"it has no {self._template.stops[0]} token",
                where=str(files["tokenizer.json"]),
                fix="give the checkpoint's tokenizer",
            )
        host = DecoderHost(decoder_of(self.config), int(config["prompt"]), int(config["cache"]))
        super().__init__(executors, config, host, tokenizer, stop_tokens(tokenizer, self._template))

    def encode(self, image: Image.Image, question: str) -> ImagePrompt:
        """The prompt: slices become vision tokens.

        Raises:
            InputError: a slice has more patches than the graphs take.
        """
        vision, grid = self.encode_image(image)
        prompt = encode_prompt(
            self.tokenizer, question, query_num=self.config.query_num, grid=grid, template=self._template,
            image_id=0 if self.config.use_image_id else None,
        )  # fmt: skip
        return ImagePrompt(prompt.input_ids, prompt.spans, vision, views=len(vision))

    def encode_image(self, image: Image.Image) -> tuple[list[FloatArray], tuple[int, int] | None]:
        """Vision tokens [Q,H] of every view, overview first, and the grid (columns, rows) of the slices."""
        views, grid = views_of(image, self.config)
        return [self._encode_view(view) for view in views], grid

    def _encode_view(self, view: Image.Image) -> FloatArray:
        patch = self.config.vision_config.patch_size
        strip, target = to_patches(view, patch)
        count = target[0] * target[1]
        if count > self.patches:
            raise InputError(
                f"a view of {target[1]}×{target[0]} patches exceeds the {self.patches} that the graphs take",
                where="image", fix="use a less extreme aspect ratio",
            )  # fmt: skip
        bias = np.full((1, 1, self.patches), MASKED, np.float32)
        bias[..., :count] = 0
        features = self.run("vision", {
            "pixel_values": _padded(strip, self.patches * patch, axis=2)[None],
            **self._positions(vision_positions(target, self.config)),
            "attention_bias": bias,
        })["vision_features"]  # fmt: skip
        positions = self._positions(connector_positions(target, self.config))
        return self.run("connector", {"vision_features": features, **positions, "attention_bias": bias})[
            "vision_tokens"
        ]

    def _positions(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        return {name: _padded(array, self.patches, axis=0) for name, array in feeds.items()}


def _padded(array: NDArray[Any], length: int, *, axis: int) -> NDArray[Any]:
    """Zeros behind `array` up to `length` along `axis`."""
    widths = [(0, length - array.shape[axis] if a == axis else 0) for a in range(array.ndim)]
    return np.pad(array, widths)


def meaningful_rows(component: str, feeds: Arrays, outputs: Iterable[str]) -> Rows:
    """As `Family.meaningful_rows`: the patches of a view, the tokens of a prompt."""
    if component == "vision":
        return {"vision_features": (0, 0, int((np.asarray(feeds["attention_bias"], np.float32) > MASKED / 2).sum()))}
    return prompt_rows(component, feeds, outputs)
