"""The language model's GGUF file: what its metadata says of a decoder, and tensors that follow from that."""

import math
from collections.abc import Mapping

import numpy as np

from pocketport.compress.families.decoder.config import FULL, LINEAR, SLIDING, DecoderConfig
from pocketport.compress.families.decoder.rope import RopeConfig
from pocketport.compress.ggml.casting import computed_tensor
from pocketport.compress.ggml.writer import TensorData, Value
from pocketport.errors import InputError

SLIDING_PERIOD = 6  # of Gemma 3's layers, in llama.cpp's own loader
STILL_PERIOD = 4  # of SmolLM3's layers without positions, likewise
LARGEST_GEMMA = 62  # layers of the one whose attention has a scale of its own there


def check_decoder(config: DecoderConfig, architecture: str) -> None:
    """See to it that llama.cpp's graph of an architecture computes what this decoder is.

    Raises:
        InputError: names the key of config.json that it has no place for.
    """
    scaled = architecture == "minicpm"
    sliding = tuple(SLIDING if (i + 1) % SLIDING_PERIOD else FULL for i in range(config.num_hidden_layers))
    rotary = tuple(architecture != "smollm3" or (i + 1) % STILL_PERIOD != 0 for i in range(config.num_hidden_layers))
    yarn = 0.1 * math.log(config.rope.factor) + 1 if config.rope.kind == "yarn" else 1.0
    gemma_scale = config.num_hidden_layers == LARGEST_GEMMA or config.attention_scalar == config.head_dim
    windowed = set(config.layer_types) - {FULL}
    problems = {
        "layer_types": LINEAR in windowed or (architecture == "gemma3" and config.layer_types != sliding),
        "use_sliding_window": architecture != "gemma3" and len(set(config.layer_types)) > 1,
        "no_rope_layers": config.rotary != rotary,
        "scale_emb": config.embedding_scale != 1 and architecture not in ("minicpm", "gemma3"),
        "scale_depth": config.residual_scale != 1 and not scaled,
        "dim_model_base": config.logits_scale != 1 and not scaled,
        "partial_rotary_factor": config.rope.still > 0 or bool(config.rope.sections),
        "query_pre_attn_scalar": architecture == "gemma3" and not gemma_scale,
        "rope_scaling": config.rope.kind == "yarn" and not math.isclose(config.rope.amplitude, yarn, rel_tol=1e-6),
    }
    for key, wrong in problems.items():
        if wrong:
            raise InputError(
                f"llama.cpp's {architecture} has no place for its value",
                where=f"config.json, {key}",
                fix="port the model to another format",
            )


def decoder_metadata(config: DecoderConfig, architecture: str, words: int) -> dict[str, Value]:
    """The keys of ``<architecture>.*``.

    Args:
        config: of the decoder; see `check_decoder`.
        architecture: ``general.architecture``.
        words: rows of the embedding table.
    """
    context = config.max_position_embeddings
    if SLIDING in config.layer_types and architecture != "gemma3":
        context = min(context, config.sliding_window or context)  # up to there it is full attention
    keys: dict[str, Value] = {
        "block_count": config.num_hidden_layers, "context_length": context, "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size, "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads, "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim, "attention.layer_norm_rms_epsilon": float(config.norm_eps),
        "rope.dimension_count": config.head_dim, "rope.freq_base": float(config.rope.theta), "vocab_size": words,
        **_scaling(config.rope),
    }  # fmt: skip
    if architecture == "minicpm":
        keys["embedding_scale"] = float(config.embedding_scale)
        keys["residual_scale"] = float(config.residual_scale)
        keys["logit_scale"] = float(1 / config.logits_scale)  # llama.cpp divides by it
    if architecture == "gemma3" and config.sliding_window:
        keys["attention.sliding_window"] = config.sliding_window
        keys["rope.freq_base_swa"] = float((config.sliding_rope or config.rope).theta)
    return {f"{architecture}.{key}": value for key, value in keys.items()}


def rotary_tensors(config: DecoderConfig) -> list[TensorData]:
    """What frequencies are divided by, where that is not one number for all."""
    rope = config.rope
    if rope.kind == "llama3":
        plain = RopeConfig(rope.width, rope.theta).frequencies(1)
        return [_factors("rope_freqs.weight", plain / rope.frequencies(config.max_position_embeddings))]
    if rope.kind == "longrope":
        short = rope.short_factors if rope.long_from else rope.long_factors
        return [
            _factors("rope_factors_long.weight", np.array(rope.long_factors)),
            _factors("rope_factors_short.weight", np.array(short)),
        ]
    return []


def _factors(name: str, factors: np.ndarray) -> TensorData:
    return computed_tensor(name, "f32", factors.shape, lambda: factors)


def _scaling(rope: RopeConfig) -> Mapping[str, Value]:
    """The keys of ``rope.scaling``."""
    if rope.kind == "linear":
        return {"rope.scaling.type": "linear", "rope.scaling.factor": float(rope.factor)}
    if rope.kind == "yarn":
        return {
            "rope.scaling.type": "yarn", "rope.scaling.factor": float(rope.factor),
            "rope.scaling.original_context_length": rope.original_length,
            "rope.scaling.yarn_beta_fast": float(rope.fast_rotations),
            "rope.scaling.yarn_beta_slow": float(rope.slow_rotations),
        }  # fmt: skip
    if rope.kind == "longrope":
        return {
            "rope.scaling.type": "longrope", "rope.scaling.original_context_length": rope.original_length,
            "rope.scaling.attn_factor": float(rope.amplitude),
        }  # fmt: skip
    return {}
