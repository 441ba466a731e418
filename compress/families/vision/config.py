"""Configuration of towers and image-text encoders, read from the published ``config.json``.

Published files leave out what has its default; the defaults are those that transformers gives each ``model_type``.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pocketport.compress.sources.source import Source
from pocketport.errors import InputError

SIGLIP, NAFLEX, CLIP = "siglip", "siglip2", "clip"
ACTIVATIONS: Mapping[str, str] = {
    "gelu_pytorch_tanh": "tanh", "gelu_new": "tanh", "gelu": "none", "quick_gelu": "quick",
}  # fmt: skip
VISION_TYPES = tuple(f"{kind}_vision_model" for kind in (SIGLIP, NAFLEX, CLIP))


class TowerConfig(BaseModel):
    """What every tower has; widths in channels."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    hidden_size: int = Field(768, gt=0)
    intermediate_size: int = Field(3072, gt=0)
    num_hidden_layers: int = Field(12, gt=0, le=4096)
    num_attention_heads: int = Field(12, gt=0)
    hidden_act: str = "gelu_pytorch_tanh"
    layer_norm_eps: float = Field(1e-6, gt=0)


class VisionConfig(TowerConfig):
    """A vision tower."""

    image_size: int = Field(224, gt=0)
    patch_size: int = Field(16, gt=0)
    num_channels: int = Field(3, gt=0)
    num_patches: int = Field(256, gt=0)
    vision_use_head: bool = True

    @property
    def side(self) -> int:
        """Patches along one side of an image of a fixed size."""
        return self.image_size // self.patch_size


class TextConfig(TowerConfig):
    """A text tower."""

    vocab_size: int = Field(32000, gt=0)
    max_position_embeddings: int = Field(64, gt=0)
    projection_size: int | None = Field(None, gt=0)
    eos_token_id: int = 49407


CLIP_VISION: Mapping[str, Any] = {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "patch_size": 32}
CLIP_TEXT: Mapping[str, Any] = {
    "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "hidden_size": 512, "intermediate_size": 2048,
    "num_attention_heads": 8, "max_position_embeddings": 77, "vocab_size": 49408,
}  # fmt: skip
Tower = TypeVar("Tower", bound=TowerConfig)


@dataclass(frozen=True)
class EncodersConfig:
    """An image-text encoder, or a vision tower on its own.

    Attributes:
        kind: ``siglip``, ``siglip2`` (images of any shape, NaFlex) or ``clip``.
        vision: the vision tower.
        text: the text tower; None: the vision tower stands alone.
        projection: width of the space that both project into; None: none of them projects.
    """

    kind: str
    vision: VisionConfig
    text: TextConfig | None = None
    projection: int | None = None

    @classmethod
    def of(cls, source: Source) -> "EncodersConfig":
        """A source's configuration.

        Raises:
            InputError: it describes something else, or a form that is not supported.
        """
        return cls.from_hf(source.config, f"{source.path}, config.json")

    @classmethod
    def from_hf(cls, config: Mapping[str, Any], where: str = "config.json") -> "EncodersConfig":
        """A published configuration; InputError as `of`."""
        model_type = str(config["model_type"])
        alone = model_type in VISION_TYPES
        kind = model_type.removesuffix("_vision_model")
        defaults = (CLIP_VISION, CLIP_TEXT) if kind == CLIP else ({}, {})
        vision = tower(VisionConfig, {**defaults[0], **(config if alone else _section(config, "vision"))}, where)
        text = None if alone else tower(TextConfig, {**defaults[1], **_section(config, "text")}, where)
        return cls(kind, vision, text, int(config.get("projection_dim") or 512) if kind == CLIP else None)


def _section(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """One tower's keys. Old CLIP files also have ``<name>_config_dict``, which overrides."""
    found = config.get(f"{name}_config_dict") or config.get(f"{name}_config") or {}
    return found if isinstance(found, Mapping) else {}


def tower(kind: type[Tower], keys: Mapping[str, Any], where: str) -> Tower:
    """A tower's configuration from its keys; InputError when they describe what the graphs can't express."""
    try:
        config = kind.model_validate({key: value for key, value in keys.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise InputError(f"{key}: {first['msg']}", where=where, fix="give the published config.json") from error
    problems = {
        f"the activation {config.hidden_act!r} is not supported": config.hidden_act not in ACTIVATIONS,
        "num_attention_heads does not divide hidden_size": config.hidden_size % config.num_attention_heads != 0,
        "only images of three channels are supported": isinstance(config, VisionConfig) and config.num_channels != 3,
        "an image is smaller than a patch": isinstance(config, VisionConfig) and config.side < 1,
    }
    for why, found in problems.items():
        if found:
            raise InputError(why, where=where, fix="export the model to ONNX")
    return config
