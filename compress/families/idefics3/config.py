"""Configuration of Idefics3 (Laurençon et al. 2024, arXiv 2408.12637) and SmolVLM (Marafioti et al. 2025, arXiv 2504.05299)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pocketport.compress.families.decoder.config import DecoderConfig
from pocketport.compress.families.vision.config import VisionConfig, tower
from pocketport.errors import InputError

MODEL_TYPES = ("idefics3", "smolvlm")
TOWER: Mapping[str, Any] = {"hidden_size": 1152, "num_attention_heads": 16, "patch_size": 32}  # where files say nothing


@dataclass(frozen=True)
class Idefics3Config:
    """What decides the graphs.

    Attributes:
        vision: the tower, a SigLIP without its pooling head.
        decoder: the language model.
        shuffle: so many patches along each side become one vision token.
        image_token: the token that stands for a vision token.
        opening_token: the token that a prompt begins with.
    """

    vision: VisionConfig
    decoder: DecoderConfig
    shuffle: int
    image_token: int
    opening_token: int

    @classmethod
    def from_hf(cls, config: Mapping[str, Any], where: str = "config.json") -> "Idefics3Config":
        """A published configuration.

        Raises:
            InputError: it lacks a part, or describes a form that is not supported.
        """
        text, vision = config.get("text_config"), config.get("vision_config")
        if not isinstance(text, Mapping) or not isinstance(vision, Mapping):
            raise InputError("it lacks text_config or vision_config", where=where, fix="give the published config.json")
        numbers = {
            "scale_factor": config.get("scale_factor", 2),
            "image_token_id": config.get("image_token_id", 128257),
            "text_config.bos_token_id": text.get("bos_token_id", 1),
        }
        for key, value in numbers.items():
            if type(value) is not int or value < 0 or (key == "scale_factor" and value < 1):
                raise InputError(f"{value!r} is no such number", where=f"{where}, {key}", fix="give the published file")
        return cls(
            tower(VisionConfig, {**TOWER, **vision}, f"{where}, vision_config"),
            DecoderConfig.from_hf({**config, "tie_word_embeddings": config.get("tie_word_embeddings", False)}),
            *numbers.values(),
        )

    def tokens(self, tile: int) -> int:
        """Vision tokens of a tile of this many pixels a side.

        Raises:
            InputError: its patches can't be joined evenly.
        """
        side = tile // self.vision.patch_size
        if side < 1 or side % self.shuffle:
            raise InputError(
                f"a tile of {tile} pixels makes {side} patches a side, which {self.shuffle} does not divide",
                where="preprocessor_config.json, max_image_size",
                fix="give the file that belongs to this checkpoint",
            )
        return (side // self.shuffle) ** 2
