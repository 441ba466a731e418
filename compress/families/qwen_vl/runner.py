"""The host side of the Qwen-VL series: from image and question to the language model's prompt."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pocketport.compress.executors.ort_executor import Arrays, Executor
from pocketport.compress.families.chat import ImageChat, ImagePrompt
from pocketport.compress.families.decoder.host import MASKED, DecoderHost, Rows, prompt_rows
from pocketport.compress.families.qwen_vl.config import QwenVLConfig
from pocketport.compress.families.qwen_vl.images import ImageSettings, to_patches
from pocketport.compress.families.qwen_vl.prompt import TURN_END, encode_prompt, load_tokenizer, token_id
from pocketport.compress.families.qwen_vl.seen import SeenImage, image_prompt, seen_image, vision_feeds


class QwenVLChat(ImageChat):
    """Patches, vision and connector, and the prompt with its multimodal positions.

    Args:
        executors: one for each of ``vision``, ``connector``, ``embed``, ``prefill`` and ``decode``; only their
            ``run(feeds)`` is used.
        config: the bundle's ``config``.
        files: the bundle's files; ``tokenizer.json`` is read.

    Raises:
        InputError: the tokenizer is damaged, or not of this checkpoint.
    """

    def __init__(self, executors: Mapping[str, Executor], config: Mapping[str, Any], files: Mapping[str, Path]) -> None:
        self.config = QwenVLConfig.from_hf(config["model"])
        self.image = ImageSettings.model_validate(config["image"])
        self.patches = int(config["patches"])
        tokenizer = load_tokenizer(files["tokenizer.json"], self.config)
        stops = [token_id(tokenizer, TURN_END), *config["stop_tokens"]]
        host = DecoderHost(self.config.decoder, int(config["prompt"]), int(config["cache"]))
        super().__init__(executors, config, host, tokenizer, stops)

    def encode(self, image: Image.Image, question: str) -> ImagePrompt:
        """The prompt about an image.

        Raises:
            InputError: the image has more patches than the graphs take, or too extreme an aspect ratio; the prompt is
                too long, or holds the image's own token.
        """
        seen = self.encode_image(image)
        input_ids, first = encode_prompt(self.tokenizer, self.config, question, len(seen.tokens))
        return image_prompt(input_ids, first, seen, self.host)

    def encode_image(self, image: Image.Image) -> SeenImage:
        """What vision and connector make of an image."""
        patches, grid = to_patches(image, self.image)
        features = self.run("vision", vision_feeds(patches, grid, self.config.vision, self.patches))
        return seen_image(self.run("connector", features), grid, self.config.vision)


def meaningful_rows(component: str, feeds: Arrays, outputs: Iterable[str]) -> Rows:
    """As `Family.meaningful_rows`: the patches of an image, the tokens of a prompt."""
    if component == "vision":
        count = int((np.asarray(feeds["attention_bias"], np.float32) > MASKED / 2).sum())
        return {name: (0, 0, count) for name in outputs}
    return prompt_rows(component, feeds, outputs)
