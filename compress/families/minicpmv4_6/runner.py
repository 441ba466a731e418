"""The host side of MiniCPM-V 4.6 and 4.7: from image and question to the language model's prompt."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pocketport.compress.executors.ort_executor import Arrays, Executor
from pocketport.compress.families.chat import ImageChat, ImagePrompt
from pocketport.compress.families.decoder.host import MASKED, DecoderHost, Rows, prompt_rows
from pocketport.compress.families.decoder.rope import FloatArray
from pocketport.compress.families.minicpmv.slicing import Size
from pocketport.compress.families.minicpmv4_6.canvas import canvas_positions
from pocketport.compress.families.minicpmv4_6.config import MiniCPMV46Config, ProcessorConfig
from pocketport.compress.families.minicpmv4_6.prompt import (
    EncodedPrompt,
    encode_prompt,
    image_placeholder,
    load_tokenizer,
    stop_tokens,
)
from pocketport.compress.families.minicpmv4_6.template import Template
from pocketport.compress.families.minicpmv4_6.views import View, views_of


class MergerChat(ImageChat):
    """Slicing, vision and connector, and the prompt.

    Args:
        executors: one for each of ``vision``, ``connector``, ``embed``, ``prefill`` and ``decode``; only their
            ``run(feeds)`` is used.
        config: the bundle's ``config``.
        files: the bundle's files; ``tokenizer.json`` is read.

    Raises:
        InputError: the tokenizer is damaged, or not of this family.
    """

    def __init__(self, executors: Mapping[str, Executor], config: Mapping[str, Any], files: Mapping[str, Path]) -> None:
        self.config = MiniCPMV46Config.model_validate(config["model"])
        self.processor = ProcessorConfig.model_validate(config["processor"])
        self.template = Template(**config["template"])
        self.patches = int(config["patches"])
        tokenizer = load_tokenizer(files["tokenizer.json"], self.config)
        stops = stop_tokens(tokenizer, config["stop_tokens"])
        host = DecoderHost(self.config.decoder(), int(config["prompt"]), int(config["cache"]))
        super().__init__(executors, config, host, tokenizer, stops)

    def encode(self, image: Image.Image, question: str) -> ImagePrompt:
        """The prompt: views become vision tokens.

        Raises:
            InputError: a view has more patches than the graphs take, or the question holds the image's token.
        """
        views, grid = views_of(image, self.config, self.processor)
        prompt = self.encode_text(views, grid, question)
        return image_prompt(prompt, views, grid, [self._encode_view(view) for view in views], self.config)

    def encode_text(self, views: list[View], grid: Size | None, question: str) -> EncodedPrompt:
        """The prompt's tokens."""
        image_token = str(self.tokenizer.id_to_token(self.config.image_token_id))
        number = 0 if self.processor.use_image_id else None
        placeholder = image_placeholder(image_token, [view.tokens for view in views], grid, number)
        return encode_prompt(self.tokenizer, self.template, placeholder, question, self.config, len(views))

    def _encode_view(self, view: View) -> FloatArray:
        features = self.run("vision", view.feeds(self.patches, self.config.mergers))
        return np.asarray(self.run("connector", features)["vision_tokens"][: view.tokens])


def image_prompt(
    prompt: EncodedPrompt, views: list[View], grid: Size | None, vision: list[FloatArray], config: MiniCPMV46Config
) -> ImagePrompt:
    """A prompt with its vision tokens, and in version 4.7 with its positions."""
    markers = config.markers()
    positions = None
    if markers is not None:
        sizes = [(view.target[0] // config.side, view.target[1] // config.side) for view in views]
        positions = canvas_positions(prompt.input_ids, prompt.spans, sizes, grid, markers)
    return ImagePrompt(prompt.input_ids, prompt.spans, vision, len(views), positions)


def meaningful_rows(component: str, feeds: Arrays, outputs: Iterable[str]) -> Rows:
    """As `Family.meaningful_rows`: what became of a view's patches, the tokens of a prompt."""
    if component == "vision":
        bias = feeds.get("merged_attention_bias", feeds["attention_bias"])
        return {"vision_features": (0, 0, int((np.asarray(bias, np.float32) > MASKED / 2).sum()))}
    return prompt_rows(component, feeds, outputs)
