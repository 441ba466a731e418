"""What a decoder-only language model is, read from the ``config.json`` of each kind that is known.

Keys that a published file leaves out have the value that transformers gives them for that ``model_type``.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pocketport.compress.families.decoder.rope import RopeConfig
from pocketport.errors import InputError

WIDEST = 1 << 24  # channels; tables are made of this length before any tensor is looked at
FULL, SLIDING, LINEAR = "full_attention", "sliding_attention", "linear_attention"
ACTIVATIONS: Mapping[str, str] = {"silu": "silu", "swish": "silu", "gelu_pytorch_tanh": "gelu_tanh"}

# Per model_type: the defaults of keys that a published config.json may leave out.
DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "llama": {},
    "mistral": {"num_key_value_heads": 8, "sliding_window": 4096, "max_position_embeddings": 131072},
    "qwen2": {"max_position_embeddings": 32768, "sliding_window": 4096},
    "qwen2_vl_text": {"max_position_embeddings": 32768, "sliding_window": 4096, "max_window_layers": 80,
                      "rms_norm_eps": 1e-5, "rope_theta": 1e6, "num_key_value_heads": 8},
    "qwen3": {"max_position_embeddings": 32768, "sliding_window": 4096, "head_dim": 128},
    "qwen3_vl_text": {"max_position_embeddings": 128000, "head_dim": 128, "rope_theta": 5e5},
    "qwen3_5_text": {"max_position_embeddings": 32768, "num_attention_heads": 16, "num_key_value_heads": 4, "head_dim": 256,
                     "vocab_size": 248320, "partial_rotary_factor": 0.25, "full_attention_interval": 4},
    "minicpm": {"tie_word_embeddings": True, "scale_emb": 1.0, "dim_model_base": 1, "scale_depth": 1.0},
    "gemma3_text": {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "vocab_size": 262208,
                    "max_position_embeddings": 131072, "tie_word_embeddings": True, "rope_theta": 1e6,
                    "sliding_window": 4096, "hidden_act": "gelu_pytorch_tanh", "query_pre_attn_scalar": 256},
    "smollm3": {"num_key_value_heads": 4, "max_position_embeddings": 32768, "tie_word_embeddings": True,
                "rope_theta": 2e6},
}  # fmt: skip
SAME_TEXT: Mapping[str, str] = {
    "qwen2_vl": "qwen2_vl_text", "qwen2_5_vl": "qwen2_vl_text", "qwen2_5_vl_text": "qwen2_vl_text",
    "qwen3_vl": "qwen3_vl_text", "qwen3_5": "qwen3_5_text", "gemma3": "gemma3_text",
}  # fmt: skip


class Sparse(BaseModel):
    """MiniCPM4's sparse attention: contexts up to `dense_len` tokens are attended to in full."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    dense_len: int = Field(8192, gt=0)


class Published(BaseModel):
    """The keys of a text configuration, checked for type and range; unknown ones are left alone."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    hidden_size: int = Field(gt=0, le=WIDEST)
    intermediate_size: int = Field(gt=0, le=WIDEST)
    num_hidden_layers: int = Field(gt=0, le=4096)
    num_attention_heads: int = Field(gt=0)
    num_key_value_heads: int | None = Field(None, gt=0)
    head_dim: int | None = Field(None, gt=0, le=WIDEST)
    vocab_size: int = Field(gt=0)
    max_position_embeddings: int = Field(2048, gt=0)
    rms_norm_eps: float = Field(1e-6, gt=0)
    hidden_act: str = "silu"
    hidden_activation: str | None = None
    attention_bias: bool = False
    mlp_bias: bool = False
    tie_word_embeddings: bool = False
    rope_theta: float = Field(10000.0, gt=0)
    rope_local_base_freq: float = Field(10000.0, gt=0)
    rope_scaling: dict[str, Any] | None = None
    rope_parameters: dict[str, Any] | None = None
    partial_rotary_factor: float | None = None
    use_sliding_window: bool = False
    sliding_window: int | None = Field(None, gt=0)
    sliding_window_pattern: int = Field(6, gt=0)
    max_window_layers: int = 28
    layer_types: list[str] | None = None
    no_rope_layers: list[int] | None = None
    no_rope_layer_interval: int = Field(4, gt=0)
    scale_emb: float = 1.0
    scale_depth: float = 1.0
    dim_model_base: float = Field(1.0, gt=0)
    sparse_config: Sparse | None = None
    query_pre_attn_scalar: int | None = Field(None, gt=0)
    final_logit_softcapping: float | None = None
    attn_logit_softcapping: float | None = None
    full_attention_interval: int = Field(4, gt=0)
    linear_conv_kernel_dim: int = Field(4, gt=1)
    linear_key_head_dim: int = Field(128, gt=0)
    linear_value_head_dim: int = Field(128, gt=0)
    linear_num_key_heads: int = Field(16, gt=0)
    linear_num_value_heads: int = Field(32, gt=0)
    use_bidirectional_attention: bool | None = None


@dataclass(frozen=True)
class DeltaConfig:
    """Linear attention by the gated delta rule (Yang et al. 2024, arXiv 2412.06464), as Qwen3.5 has it.

    Attributes:
        key_heads, value_heads: each key head serves as many value heads in a row as come on it.
        key_width, value_width: channels of one head.
        kernel: tokens that the convolution before it sees, the token itself among them.
    """

    key_heads: int
    value_heads: int
    key_width: int
    value_width: int
    kernel: int

    @property
    def mixed_width(self) -> int:
        """Channels that pass the convolution: queries, keys and values."""
        return 2 * self.key_heads * self.key_width + self.value_heads * self.value_width


@dataclass(frozen=True)
class DecoderConfig:
    """One decoder. Widths are in channels, lengths in tokens.

    Attributes:
        hidden_size: H.
        intermediate_size: width inside the MLP.
        num_hidden_layers, num_attention_heads, num_key_value_heads, head_dim, vocab_size: as published.
        norm_eps: of every RMSNorm.
        max_position_embeddings: the longest context that this model's graphs may have.
        rope: rotary positions of the layers that attend to everything, or of all where there is one kind only.
        sliding_rope: those of the sliding layers, where they have their own.
        layer_types: per layer ``full_attention``, ``sliding_attention`` or ``linear_attention``.
        rotary: per layer whether it rotates queries and keys at all.
        sliding_window: how many tokens a sliding layer sees, the token itself among them.
        qkv_bias, output_bias, mlp_bias: which linear layers have a bias.
        qk_norm: queries and keys are normalized per head.
        activation: ``silu`` or ``gelu_tanh``, of the gate.
        attention_scalar: scores are divided by its square root.
        unit_offset_norm: norms multiply by 1 + weight.
        sandwich_norms: attention and MLP are normalized before and after.
        embedding_scale: embeddings are multiplied by it.
        residual_scale: what attention and MLP add is multiplied by it.
        logits_scale: the last hidden state is multiplied by it before the vocabulary projection.
        tie_word_embeddings: the projection may be the embedding table.
        delta: of the layers with linear attention, where there are some.
        gated_attention: attention's output is multiplied by a sigmoid that the query projection gives too.
    """

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    norm_eps: float
    max_position_embeddings: int
    rope: RopeConfig
    sliding_rope: RopeConfig | None
    layer_types: tuple[str, ...]
    rotary: tuple[bool, ...]
    attention_scalar: int
    sliding_window: int | None = None
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    activation: str = "silu"
    unit_offset_norm: bool = False
    sandwich_norms: bool = False
    embedding_scale: float = 1.0
    residual_scale: float = 1.0
    logits_scale: float = 1.0
    tie_word_embeddings: bool = False
    delta: DeltaConfig | None = None
    gated_attention: bool = False

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of attention to a cache of keys and values among the layers, ``full_attention`` first."""
        return tuple(kind for kind in (FULL, SLIDING) if kind in self.layer_types)

    def state_names(self) -> tuple[str, ...]:
        """What decode takes as ``past_<name>`` and gives as ``present_<name>``, layer by layer."""
        kinds = {LINEAR: ("conv", "state")}
        return tuple(
            f"{name}_{i}" for i, kind in enumerate(self.layer_types) for name in kinds.get(kind, ("key", "value"))
        )

    def input_prefix(self, kind: str) -> str:
        """What the graph inputs of this kind of layer begin with: ``sliding_`` only beside full attention."""
        return "" if kind == self.kinds[0] else "sliding_"

    def rope_of(self, kind: str) -> RopeConfig:
        """The rotary positions of this kind of layer."""
        return self.sliding_rope if kind == SLIDING and self.sliding_rope else self.rope

    def rope_prefix(self, kind: str) -> str:
        """`input_prefix` of the rotary inputs, which the kinds share unless sliding layers have their own."""
        return self.input_prefix(kind) if self.sliding_rope else ""

    def truncated(self, layers: int) -> "DecoderConfig":
        """The same decoder with only its first `layers` layers (at most all)."""
        count = min(layers, self.num_hidden_layers)
        return replace(
            self, num_hidden_layers=count, layer_types=self.layer_types[:count], rotary=self.rotary[:count]
        )  # fmt: skip

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> "DecoderConfig":
        """The decoder that a ``config.json`` describes.

        Args:
            config: a text configuration, or a composite one: its ``text_config`` is used. A composite that keeps
                the keys of its decoder at the top level (MiniCPM-V) must be given with the decoder's
                ``model_type``: ``{**config, "model_type": "qwen2"}``.

        Raises:
            InputError: names the key whose value is missing, out of range, or not supported.
        """
        text = dict(config)
        if isinstance(config.get("text_config"), Mapping):
            text = {"model_type": config.get("model_type"), **config["text_config"]}
            if "tie_word_embeddings" in config:
                text["tie_word_embeddings"] = config["tie_word_embeddings"]
        kind = SAME_TEXT.get(str(text.get("model_type")), str(text.get("model_type")))
        if kind not in DEFAULTS:
            known = ", ".join(DEFAULTS)
            raise _refused(f"the decoder {kind!r} is not known", "model_type", f"known: {known}; or export it to ONNX")
        given = {key: value for key, value in text.items() if value is not None or key == "sliding_window"}
        try:
            published = Published.model_validate({**DEFAULTS[kind], **given})
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(map(str, first["loc"]))
            raise _refused(f"{first['msg']} ({kind})", key, "give the published config.json") from error
        return _checked(_decoder(kind, published), published)


def _decoder(kind: str, p: Published) -> DecoderConfig:
    """The published keys in this module's terms."""
    heads = p.num_attention_heads
    head_dim = p.head_dim or p.hidden_size // heads
    qwen, gemma, hybrid = kind.startswith("qwen"), kind == "gemma3_text", kind == "qwen3_5_text"
    layer_types = _layer_types(kind, p)
    rope, sliding_rope = _ropes(kind, p, head_dim)
    old_qwen = kind in ("qwen2", "qwen2_vl_text")
    context = min(
        p.max_position_embeddings, p.sparse_config.dense_len if p.sparse_config else p.max_position_embeddings
    )
    return DecoderConfig(
        hidden_size=p.hidden_size, intermediate_size=p.intermediate_size, num_hidden_layers=p.num_hidden_layers,
        num_attention_heads=heads, num_key_value_heads=p.num_key_value_heads or heads, head_dim=head_dim,
        vocab_size=p.vocab_size, norm_eps=p.rms_norm_eps, max_position_embeddings=context,
        rope=rope, sliding_rope=sliding_rope, layer_types=layer_types, rotary=_rotary(kind, p),
        attention_scalar=(p.query_pre_attn_scalar or head_dim) if gemma else head_dim,
        sliding_window=p.sliding_window if SLIDING in layer_types else None,
        qkv_bias=True if old_qwen else p.attention_bias and kind != "mistral",
        output_bias=p.attention_bias and not old_qwen and kind != "mistral",
        mlp_bias=p.mlp_bias and kind in ("llama", "smollm3"), qk_norm=gemma or (qwen and not old_qwen),
        activation=ACTIVATIONS.get(p.hidden_activation if gemma and p.hidden_activation else p.hidden_act, ""),
        unit_offset_norm=gemma or hybrid, sandwich_norms=gemma,
        embedding_scale=math.sqrt(p.hidden_size) if gemma else p.scale_emb if kind == "minicpm" else 1.0,
        residual_scale=p.scale_depth / math.sqrt(p.num_hidden_layers) if kind == "minicpm" else 1.0,
        logits_scale=p.dim_model_base / p.hidden_size if kind == "minicpm" else 1.0,
        tie_word_embeddings=p.tie_word_embeddings, delta=_delta(p) if hybrid and LINEAR in layer_types else None,
        gated_attention=hybrid,
    )  # fmt: skip


def _delta(p: Published) -> DeltaConfig:
    return DeltaConfig(
        p.linear_num_key_heads, p.linear_num_value_heads, p.linear_key_head_dim, p.linear_value_head_dim,
        p.linear_conv_kernel_dim,
    )  # fmt: skip


def _layer_types(kind: str, p: Published) -> tuple[str, ...]:
    """Per layer, which kind of attention it has."""
    count = p.num_hidden_layers
    windowed = p.sliding_window is not None and (kind in ("mistral", "gemma3_text") or p.use_sliding_window)
    if p.layer_types is not None and kind not in ("mistral", "llama", "minicpm"):
        return tuple(p.layer_types)
    if kind == "qwen3_5_text":
        return tuple(LINEAR if (i + 1) % p.full_attention_interval else FULL for i in range(count))
    if not windowed or kind in ("llama", "minicpm", "qwen3_vl_text"):
        return (FULL,) * count
    if kind == "mistral":
        return (SLIDING,) * count
    if kind == "gemma3_text":
        return tuple(SLIDING if (i + 1) % p.sliding_window_pattern else FULL for i in range(count))
    if kind == "smollm3":
        return tuple(FULL if rotates else SLIDING for rotates in _rotary(kind, p))
    return tuple(SLIDING if i >= p.max_window_layers else FULL for i in range(count))


def _rotary(kind: str, p: Published) -> tuple[bool, ...]:
    """Per layer, whether it rotates: SmolLM3 leaves every fourth without positions."""
    if kind != "smollm3":
        return (True,) * p.num_hidden_layers
    if p.no_rope_layers is not None:
        return tuple(map(bool, p.no_rope_layers))
    return tuple((i + 1) % p.no_rope_layer_interval != 0 for i in range(p.num_hidden_layers))


def _ropes(kind: str, p: Published, head_dim: int) -> tuple[RopeConfig, RopeConfig | None]:
    """Rotary positions of full attention, and those of sliding layers where they differ."""
    common: dict[str, Any] = {"rope_theta": p.rope_theta}
    if p.partial_rotary_factor is not None:
        common["partial_rotary_factor"] = p.partial_rotary_factor
    scaling = p.rope_parameters or p.rope_scaling or {}
    if kind == "qwen3_5_text":
        scaling = {**scaling, "mrope_interleaved": True}
    elif {**common, **scaling}.get("partial_rotary_factor") not in (None, 1, 1.0):
        raise _refused("it is not supported for this kind of model", "partial_rotary_factor", "export it to ONNX")
    longest = p.max_position_embeddings
    nested = {key: scaling[key] for key in (FULL, SLIDING) if isinstance(scaling.get(key), Mapping)}
    rope = RopeConfig.from_hf(
        {**common, **(nested.get(FULL, {}) if nested else scaling)}, width=head_dim, longest=longest
    )
    if kind == "minicpm" and rope.kind == "longrope" and longest > rope.original_length:
        rope = replace(rope, long_from=0)  # MiniCPM4 makes its table once, for its longest context
    if kind != "gemma3_text":
        return rope, None
    local = {"rope_theta": p.rope_local_base_freq, **nested.get(SLIDING, {})}
    return rope, RopeConfig.from_hf(local, width=head_dim, longest=longest)


def _checked(config: DecoderConfig, p: Published) -> DecoderConfig:
    """`config` as it is; InputError names what the graphs can't express."""
    problems = {
        "hidden_act": "" if config.activation else f"the activation {p.hidden_activation or p.hidden_act!r} is not supported",
        "num_key_value_heads": "it does not divide num_attention_heads" if config.num_attention_heads % config.num_key_value_heads else "",
        "head_dim": "rotary positions need an even width" if config.head_dim % 2 or config.rope.width % 2 else "",
        "layer_types": _unknown(config) or _miscounted(config.layer_types, config) or ("" if config.kinds else "linear attention alone is not supported"),
        "linear_num_value_heads": "linear_num_key_heads does not divide it" if config.delta and config.delta.value_heads % config.delta.key_heads else "",
        "attention_bias": "it is not supported beside linear attention, which needs padding rows that stay zero" if config.delta and p.attention_bias else "",
        "no_rope_layers": _miscounted(config.rotary, config),
        "sliding_window": "the sliding layers need it" if SLIDING in config.layer_types and not config.sliding_window else "",
        "final_logit_softcapping": "it is not supported" if p.final_logit_softcapping else "",
        "attn_logit_softcapping": "it is not supported" if p.attn_logit_softcapping else "",
        "use_bidirectional_attention": "it is not supported" if p.use_bidirectional_attention else "",
    }  # fmt: skip
    for key, why in problems.items():
        if why:
            raise _refused(why, key, "give a model that has it otherwise, or export this one to ONNX")
    return config


def _unknown(config: DecoderConfig) -> str:
    known = {FULL, SLIDING, LINEAR} if config.delta else {FULL, SLIDING}
    unknown = sorted(set(config.layer_types) - known)
    return f"{unknown[0]!r} is not supported" if unknown else ""


def _miscounted(per_layer: tuple[Any, ...], config: DecoderConfig) -> str:
    count, layers = len(per_layer), config.num_hidden_layers
    return "" if count == layers else f"it has {count} entries for {layers} layers"


def _refused(why: str, key: str, fix: str) -> InputError:
    return InputError(why, where=f"config.json, {key}", fix=fix)
