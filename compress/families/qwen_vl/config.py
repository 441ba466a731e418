"""Configuration of the Qwen-VL series, read from a published ``config.json``.

The keys are those of the ``Qwen`` checkpoints, flat (the language model's keys at the top level, as Qwen2-VL and
Qwen2.5-VL were published) or nested under ``text_config``. Keys that a file leaves out have the value that
transformers gives them for that ``model_type``.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pocketport.compress.families.decoder.config import DecoderConfig
from pocketport.errors import InputError

DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "qwen2_vl": {"depth": 32, "hidden_size": 3584, "embed_dim": 1280, "mlp_ratio": 4, "patch_size": 14,
                 "hidden_act": "quick_gelu"},
    "qwen2_5_vl": {"depth": 32, "hidden_size": 3584, "intermediate_size": 3420, "patch_size": 14, "window_size": 112,
                   "fullatt_block_indexes": [7, 15, 23, 31], "out_hidden_size": 3584, "hidden_act": "silu"},
    "qwen3_vl": {"depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "patch_size": 16,
                 "num_position_embeddings": 2304, "deepstack_visual_indexes": [8, 16, 24], "out_hidden_size": 3584,
                 "hidden_act": "gelu_pytorch_tanh"},
}  # fmt: skip
MODEL_TYPES = tuple(DEFAULTS)
ACTIVATIONS: Mapping[str, str] = {"qwen2_vl": "quick_gelu", "qwen2_5_vl": "silu", "qwen3_vl": "gelu_pytorch_tanh"}
NORM_EPS = 1e-6  # of every norm in the tower and its mergers; no file gives it
ROPE_THETA = 10000.0  # of the tower's rotary positions


class Published(BaseModel):
    """The keys of a ``vision_config``, checked for type and range; unknown ones are left alone."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    depth: int = Field(gt=0, le=1024)
    hidden_size: int = Field(gt=0)
    embed_dim: int | None = Field(None, gt=0)
    mlp_ratio: float | None = Field(None, gt=0)
    intermediate_size: int | None = Field(None, gt=0)
    out_hidden_size: int | None = Field(None, gt=0)
    num_heads: int = Field(16, gt=0)
    in_channels: int = Field(3, gt=0)
    patch_size: int = Field(gt=0)
    spatial_merge_size: int = Field(2, gt=0)
    temporal_patch_size: int = Field(2, gt=0)
    hidden_act: str
    window_size: int | None = Field(None, gt=0)
    fullatt_block_indexes: list[int] = []
    num_position_embeddings: int | None = Field(None, gt=0)
    deepstack_visual_indexes: list[int] = []


class Tokens(BaseModel):
    """Ids of the tokens around an image, as ``config.json`` gives them."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    image_token_id: int = Field(151655, ge=0)
    vision_start_token_id: int = Field(151652, ge=0)
    vision_end_token_id: int = Field(151653, ge=0)


@dataclass(frozen=True)
class VisionConfig:
    """The vision tower. Widths are in channels, sizes in pixels.

    Attributes:
        depth: layers.
        width: D, of the residual stream.
        inner: width inside the MLP.
        heads: attention heads.
        out_width: H, of the merged tokens.
        channels, temporal, patch: a patch is [channels, temporal, patch, patch]; images repeat along `temporal`.
        merge: this many patches squared become one vision token.
        activation: ``quick_gelu``, ``silu`` or ``gelu_pytorch_tanh``.
        window: side of an attention window, None where every layer attends to everything.
        full_layers: layers that attend to everything, where there are windows.
        table_side: rows (and columns) of the learned position table, 0 where there is none.
        deepstack: layers whose output goes to the language model's first layers too, ascending.
    """

    depth: int
    width: int
    inner: int
    heads: int
    out_width: int
    channels: int
    temporal: int
    patch: int
    merge: int
    activation: str
    window: int | None
    full_layers: frozenset[int]
    table_side: int
    deepstack: tuple[int, ...]

    @property
    def head(self) -> int:
        """Width of one attention head."""
        return self.width // self.heads

    @property
    def patch_width(self) -> int:
        """Numbers in one flattened patch."""
        return self.channels * self.temporal * self.patch**2

    @property
    def merged(self) -> int:
        """Patches in one vision token."""
        return self.merge**2

    def sees_windows(self, layer: int) -> bool:
        """Whether this layer attends within windows only."""
        return self.window is not None and layer not in self.full_layers


@dataclass(frozen=True)
class QwenVLConfig:
    """The whole model.

    Attributes:
        kind: ``qwen2_vl``, ``qwen2_5_vl`` or ``qwen3_vl``.
        vision: the tower.
        decoder: the language model.
        tokens: ids of the tokens around an image.
    """

    kind: str
    vision: VisionConfig
    decoder: DecoderConfig
    tokens: Tokens

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> "QwenVLConfig":
        """The model that a ``config.json`` describes.

        Raises:
            InputError: names the key whose value is missing, out of range, or not supported.
        """
        kind = str(config.get("model_type"))
        if kind not in DEFAULTS:
            raise _refused(f"{kind!r} is not of this series", "model_type", f"known: {', '.join(DEFAULTS)}")
        section = config.get("vision_config")
        if not isinstance(section, Mapping):
            raise _refused("it is missing", "vision_config", "give the published config.json")
        given = {key: value for key, value in section.items() if value is not None}
        try:
            published = Published.model_validate({**DEFAULTS[kind], **given})
        except ValidationError as error:
            raise _invalid("vision_config.", error) from error
        try:
            tokens = Tokens.model_validate(config)
        except ValidationError as error:
            raise _invalid("", error) from error
        decoder = DecoderConfig.from_hf(config)
        return cls(kind, _checked(kind, published, decoder), decoder, tokens)


def _checked(kind: str, p: Published, decoder: DecoderConfig) -> VisionConfig:
    """The tower; InputError names what the graphs can't express."""
    width = p.embed_dim or p.hidden_size if kind == "qwen2_vl" else p.hidden_size
    out_width = p.hidden_size if kind == "qwen2_vl" else p.out_hidden_size or 0
    side = round((p.num_position_embeddings or 0) ** 0.5) if kind == "qwen3_vl" else 0
    token = p.patch_size * p.spatial_merge_size
    windows, deepstack = kind == "qwen2_5_vl", kind == "qwen3_vl"
    full = p.fullatt_block_indexes if windows else []
    seen = p.deepstack_visual_indexes if deepstack else []
    problems = {
        "hidden_act": "" if p.hidden_act == ACTIVATIONS[kind] else f"the activation {p.hidden_act!r} is not supported",
        "num_heads": "heads need a width that is a multiple of 4" if width % (4 * p.num_heads) else "",
        "out_hidden_size": "" if out_width == decoder.hidden_size else f"{out_width} is not the language model's width",
        "window_size": "it holds no whole vision token" if windows and (p.window_size or 0) < token else "",
        "num_position_embeddings": "it is not a square" if deepstack and side**2 != p.num_position_embeddings else "",
        "fullatt_block_indexes": _not_layers(full, p.depth),
        "deepstack_visual_indexes": _not_layers(seen, p.depth - 1) or _beyond(seen, decoder),
    }  # fmt: skip
    for key, why in problems.items():
        if why:
            raise _refused(why, f"vision_config.{key}", "give the published config.json, or export the model to ONNX")
    inner = int(width * (p.mlp_ratio or 0)) if kind == "qwen2_vl" else p.intermediate_size or 0
    return VisionConfig(
        depth=p.depth, width=width, inner=inner, heads=p.num_heads, out_width=out_width, channels=p.in_channels,
        temporal=p.temporal_patch_size, patch=p.patch_size, merge=p.spatial_merge_size, activation=p.hidden_act,
        window=p.window_size if windows else None, full_layers=frozenset(full), table_side=side, deepstack=tuple(seen),
    )  # fmt: skip


def _not_layers(indexes: list[int], depth: int) -> str:
    fine = indexes == sorted(set(indexes)) and all(0 <= index < depth for index in indexes)
    return "" if fine else f"{indexes} must ascend and lie below {depth}"


def _beyond(seen: list[int], decoder: DecoderConfig) -> str:
    return "" if len(seen) <= decoder.num_hidden_layers else "the language model has fewer layers"


def _invalid(section: str, error: ValidationError) -> InputError:
    first = error.errors()[0]
    key = section + ".".join(map(str, first["loc"]))
    return _refused(str(first["msg"]), key, "give the published config.json")


def _refused(why: str, key: str, fix: str) -> InputError:
    return InputError(why, where=f"config.json, {key}", fix=fix)
