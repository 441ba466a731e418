"""The host side of Idefics3 and SmolVLM: from image and question to the language model's prompt."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from pocketport.compress.executors.ort_executor import Executor
from pocketport.compress.families.chat import ImageChat, ImagePrompt
from pocketport.compress.families.decoder.host import DecoderHost
from pocketport.compress.families.decoder.rope import FloatArray
from pocketport.compress.families.idefics3.config import Idefics3Config
from pocketport.compress.families.idefics3.prompt import END, encode_prompt, load_tokenizer
from pocketport.compress.families.idefics3.tiles import Size, TileSettings


class Idefics3Chat(ImageChat):
    """Tiles, vision and connector, and the prompt with the tiles' rows and columns.

    Args:
        executors: one for each of ``vision``, ``connector``, ``embed``, ``prefill`` and ``decode``; only their
            ``run(feeds)`` is used.
        config: the bundle's ``config``.
        files: the bundle's files; ``tokenizer.json`` is read.

    Raises:
        InputError: the tokenizer is damaged, or not of this checkpoint.
    """

    def __init__(self, executors: Mapping[str, Executor], config: Mapping[str, Any], files: Mapping[str, Path]) -> None:
        self.config = Idefics3Config.from_hf(config["model"])
        self.tiles = TileSettings.from_hf(config["image"])
        tokenizer = load_tokenizer(files["tokenizer.json"], self.config)
        stops = list(dict.fromkeys([tokenizer.token_to_id(END), *config["stop_tokens"]]))
        host = DecoderHost(self.config.decoder, int(config["prompt"]), int(config["cache"]))
        super().__init__(executors, config, host, tokenizer, stops)

    def encode(self, image: Image.Image, question: str) -> ImagePrompt:
        """The prompt: tiles become vision tokens.

        Raises:
            InputError: the question holds the image's token.
        """
        vision, grid = self.encode_image(image)
        ids, spans = encode_prompt(self.tokenizer, self.config, question, grid, len(vision[0]))
        return ImagePrompt(ids, spans, vision, views=len(vision))

    def encode_image(self, image: Image.Image) -> tuple[list[FloatArray], Size]:
        """Vision tokens [Q,H] of every tile, the whole image last, and the grid (rows, columns)."""
        tiles, grid = self.tiles.cut(image)
        return [self._encode_tile(tile) for tile in tiles], grid

    def _encode_tile(self, tile: Image.Image) -> FloatArray:
        features = self.run("vision", {"pixel_values": self.tiles.pixels(tile)})
        return self.run("connector", features)["vision_tokens"]
