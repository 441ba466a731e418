"""Configuration of the MiniCPM-V family, read from a published-style ``config.json``.

The keys are those of the ``openbmb`` checkpoints, 1.0 to 4.5. Keys of the language model are kept as they are, for
the decoder to read; missing ones are errors that name the key.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pocketport.compress.sources.source import Source
from pocketport.errors import InputError

# What the name of a timm tower (versions 1.0 and 2.0) stands for; a ``vision_config`` beside it wins.
TIMM_TOWERS: Mapping[str, Mapping[str, Any]] = {
    "vit_so400m_patch14_siglip_384.webli": {
        "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16,
        "image_size": 384, "patch_size": 14,
    },
}  # fmt: skip
SLICING_KEYS = ("max_slice_nums", "scale_resolution", "patch_size")


class VisionConfig(BaseModel):
    """The SigLIP vision tower. `image_size` (pixels) sets the size of the position table, not of inputs."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    hidden_size: int = Field(gt=0)
    intermediate_size: int = Field(gt=0)
    num_hidden_layers: int = Field(gt=0, le=1024)
    num_attention_heads: int = Field(gt=0)
    image_size: int = Field(gt=0)
    patch_size: int = Field(gt=0)
    num_channels: int = 3
    hidden_act: str = "gelu_pytorch_tanh"
    layer_norm_eps: float = 1e-6

    @property
    def buckets_per_side(self) -> int:
        """Rows (and columns) of the learned position table."""
        return self.image_size // self.patch_size


class SliceConfig(BaseModel):
    """Adaptive slicing: at most `max_slice_nums` slices of about `scale_resolution` squared pixels."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    max_slice_nums: int = Field(9, gt=0)
    scale_resolution: int = Field(448, gt=0)
    patch_size: int = Field(14, gt=0)


class MiniCPMVConfig(BaseModel):
    """The whole model: the language model's keys at the top level, as the published file has them.

    Attributes:
        version: as published; versions 1.0 and 2.0 have none and are told by `vision_encoder` and `slice_mode`.
        vision_encoder: name of the timm tower (1.0 and 2.0).
        image_size: side in pixels to which version 1.0 resizes every image.
        use_image_id: the prompt numbers its images (2.6 and later).
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    version: str | float = "2.5"
    hidden_size: int = Field(gt=0)
    intermediate_size: int = Field(gt=0)
    num_hidden_layers: int = Field(gt=0)
    num_attention_heads: int = Field(gt=0)
    num_key_value_heads: int = Field(gt=0)
    vocab_size: int = Field(gt=0)
    max_position_embeddings: int = Field(gt=0)
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    tie_word_embeddings: bool = False
    query_num: int = Field(gt=0)
    slice_mode: bool = True
    slice_config: SliceConfig
    vision_config: VisionConfig
    vision_encoder: str | None = None
    image_size: int = 448
    use_image_id: bool = False
    drop_vision_last_layer: bool = False

    @model_validator(mode="before")
    @classmethod
    def _older(cls, published: Any) -> Any:
        """Versions 1.0 and 2.0: slicing at the top level, the tower by its name."""
        if not isinstance(published, Mapping) or published.get("vision_encoder") is None:
            return published
        slicing = {key: published[key] for key in SLICING_KEYS if key in published}
        tower = TIMM_TOWERS.get(str(published["vision_encoder"]))
        older = {
            "version": "2.0" if published.get("slice_mode") else "1.0",
            "slice_mode": False,
            "slice_config": slicing,
            "drop_vision_last_layer": True,
        }
        return older | ({} if tower is None else {"vision_config": tower}) | dict(published)

    @property
    def head_dim(self) -> int:
        """Width of one attention head of the LLM, where the file does not give it."""
        return self.hidden_size // self.num_attention_heads

    @property
    def resampler_heads(self) -> int:
        """The published rule: one head per 128 channels."""
        return self.hidden_size // 128

    @property
    def vision_layers(self) -> int:
        """How many layers of the tower run; checkpoints do not hold the dropped one."""
        return self.vision_config.num_hidden_layers - self.drop_vision_last_layer

    @classmethod
    def load(cls, path: Path) -> "MiniCPMVConfig":
        """Read `path`, a ``config.json`` or the directory that holds one."""
        file = path / "config.json" if path.is_dir() else path
        try:
            return cls.model_validate(json.loads(file.read_text("utf-8")))
        except (OSError, ValueError, ValidationError) as error:
            raise InputError(
                f"not a MiniCPM-V configuration: {error}",
                where=str(file),
                fix="give the config.json of a MiniCPM-V checkpoint, with its vision_config and slice_config",
            ) from error

    @classmethod
    def of(cls, source: Source) -> "MiniCPMVConfig":
        """A source's configuration; InputError when it is not one of this family."""
        try:
            return cls.model_validate(source.config)
        except ValidationError as error:
            raise InputError(
                f"not a MiniCPM-V configuration: {error}",
                where=f"{source.path}, config.json",
                fix="give the config.json of a MiniCPM-V checkpoint, with its vision_config and slice_config",
            ) from error
