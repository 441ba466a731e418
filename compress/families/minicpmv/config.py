"""Configuration of the MiniCPM-V family, read from a published-style ``config.json``.

The keys are those of ``openbmb/MiniCPM-Llama3-V-2_5``; unknown keys are kept out of the way, missing ones
are errors that name the key.
"""

import json
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from pocketport.compress.sources.source import Source
from pocketport.errors import InputError


class VisionConfig(BaseModel):
    """The SigLIP vision tower. `image_size` (pixels) sets the size of the position table, not of inputs."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    image_size: int
    patch_size: int
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

    max_slice_nums: int = 9
    scale_resolution: int = 448
    patch_size: int = 14


class MiniCPMVConfig(BaseModel):
    """The whole model: Llama keys at the top level, as the published file has them."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    version: str | float = "2.5"
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    vocab_size: int
    max_position_embeddings: int
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    tie_word_embeddings: bool = False
    query_num: int
    slice_mode: bool = True
    slice_config: SliceConfig
    vision_config: VisionConfig
    drop_vision_last_layer: bool = False

    @property
    def head_dim(self) -> int:
        """Width of one attention head of the LLM."""
        return self.hidden_size // self.num_attention_heads

    @property
    def resampler_heads(self) -> int:
        """The published rule: one head per 128 channels."""
        return self.hidden_size // 128

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
