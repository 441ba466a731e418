"""Presets: the published configuration of a model, at any scale."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import resources
from typing import Any

from pocketport.errors import UsageError
from pocketport.suggest import nearest

WIDTH_STEP = 128  # widths stay multiples of it: resampler heads and quantization groups need that
LEAST_VOCABULARY = 512
PER_LAYER = ("layer_types", "no_rope_layers")
LAYER_LISTS = ("fullatt_block_indexes", "deepstack_visual_indexes")  # layers of the stack, its last one apart
INNER_WIDTHS = ("intermediate_size", "encoder_ffn_dim", "decoder_ffn_dim")
DEPTH_KEYS = ("num_hidden_layers", "encoder_layers", "decoder_layers", "depth")


@dataclass(frozen=True)
class Preset:
    """What a published checkpoint's folder holds besides weights.

    Attributes:
        name: of the preset.
        published_as: the name under which the original is published.
        config: ``config.json``.
        implied: keys that the published ``config.json`` leaves to other code; they are written when a scale changes them.
        files: other JSON files by name.
        special_tokens: token → id; empty for models without a tokenizer.
    """

    name: str
    published_as: str
    config: Mapping[str, Any]
    implied: Mapping[str, Any]
    files: Mapping[str, Any]
    special_tokens: Mapping[str, int]


def preset_names() -> list[str]:
    """All presets, in order."""
    folder = resources.files("pocketport.compress.synthesis.presets")
    return sorted(f.name.removesuffix(".json") for f in folder.iterdir() if f.name.endswith(".json"))


def load_preset(name: str) -> Preset:
    """Read a preset; UsageError with the nearest name when there is none."""
    file = resources.files("pocketport.compress.synthesis.presets") / f"{name}.json"
    if name not in preset_names():
        raise UsageError(f"there is no preset {name!r}", where="synth", fix=nearest(name, preset_names()))
    document = json.loads(file.read_text("utf-8"))
    return Preset(
        name,
        document["published_as"],
        document["config"],
        document.get("implied", {}),
        document.get("files", {}),
        document.get("special_tokens", {}),
    )


def scaled(preset: Preset, scale: float, layers: int | None) -> Preset:
    """The same architecture with widths, depth and vocabulary times `scale`; at most `layers` layers in every stack.

    Head widths are kept and the number of heads shrinks, so that every layer keeps its form.

    Raises:
        UsageError: `scale` is not in (0, 4], or `layers` is under 1.
    """
    if not 0 < scale <= 4:
        raise UsageError(f"{scale} is not a scale", where="--scale", fix="give a number above 0, at most 4")
    if layers is not None and layers < 1:
        raise UsageError(f"{layers} is not a number of layers", where="--layers", fix="give at least 1")
    if scale == 1 and layers is None:
        return preset
    config = _scaled_section({**preset.config, **preset.implied}, scale, layers)
    vision = config.get("vision_config", {})
    if "out_hidden_size" in vision:  # what the tower gives is as wide as the language model
        vision["out_hidden_size"] = config.get("text_config", config)["hidden_size"]
    special = dict(preset.special_tokens)
    vocabulary = config.get("vocab_size") or config.get("text_config", {}).get("vocab_size")
    if special and vocabulary and max(special.values()) >= vocabulary:
        first = vocabulary - len(special)
        special = {token: first + index for index, token in enumerate(sorted(special, key=special.__getitem__))}
    moved = {preset.special_tokens[token]: index for token, index in special.items()}
    return replace(
        preset,
        config=_with_ids(config, moved),
        implied={},
        files=_with_ids(preset.files, moved),
        special_tokens=special,
    )


def _scaled_section(section: Mapping[str, Any], scale: float, layers: int | None) -> dict[str, Any]:
    result: dict[str, Any] = {}
    heads = section.get("num_attention_heads") or section.get("num_heads")

    def depth(published: int) -> int:
        fewer = max(int(section.get("full_attention_interval", 2)), round(published * scale))
        return fewer if layers is None else min(fewer, layers)

    for key, value in section.items():
        if isinstance(value, dict) and key.endswith("_config"):
            result[key] = _scaled_section(value, scale, layers)
        elif key in DEPTH_KEYS:
            result[key] = depth(value)
        elif key in PER_LAYER and value is not None:
            kinds = [value[i % len(value)] for i in range(depth(len(value)))]
            # a few layers of each kind, if they can be had: the first ones, or the last
            result[key] = kinds if set(kinds) == set(value) else value[-len(kinds) :]
        elif key in LAYER_LISTS:
            last = depth(section["depth"]) - 1
            result[key] = [layer for layer in value if layer < last] or [0][:last]
        elif key == "insert_layer_id":
            result[key] = min(round(value * scale), value if layers is None else layers - 1)
        elif scale != 1 and key == "vocab_size":
            result[key] = max(LEAST_VOCABULARY, round(value * scale / 64) * 64)
        elif scale != 1 and key in INNER_WIDTHS:
            result[key] = max(WIDTH_STEP, round(value * scale / WIDTH_STEP) * WIDTH_STEP)
        else:
            result[key] = value
    if scale != 1 and heads and "hidden_size" in section:
        result |= _scaled_heads(section, scale)
    if scale != 1 and "d_model" in section:
        result |= _scaled_stacks(section, scale)
    return result


def _scaled_heads(section: Mapping[str, Any], scale: float) -> dict[str, int]:
    """Heads of the published width; the grouping of key-value heads stays as far as the numbers allow."""
    name = "num_attention_heads" if "num_attention_heads" in section else "num_heads"
    heads = int(section[name])
    head_dim = int(section.get("head_dim") or section["hidden_size"] // heads)
    kv = int(section.get("num_key_value_heads") or heads)
    text = "num_key_value_heads" in section
    step = WIDTH_STEP // head_dim if text and WIDTH_STEP % head_dim == 0 else 1
    fewer = max(step, round(heads * scale / step) * step)
    width = fewer * head_dim
    if "head_dim" in section:
        width = max(WIDTH_STEP, round(section["hidden_size"] * scale / WIDTH_STEP) * WIDTH_STEP)
        fewer = next(n for n in range(fewer, 0, -1) if width % n == 0)  # transformers' Llama asks for it all the same
    group = next(g for g in range(min(heads // kv, fewer), 0, -1) if fewer % g == 0)
    result = {name: fewer, "hidden_size": width}
    if text:
        result["num_key_value_heads"] = fewer // group
    if "linear_num_key_heads" in section:
        keys, values = section["linear_num_key_heads"], section["linear_num_value_heads"]
        result["linear_num_key_heads"] = max(1, round(keys * scale))
        result["linear_num_value_heads"] = result["linear_num_key_heads"] * (values // keys)
    return result


def _scaled_stacks(section: Mapping[str, Any], scale: float) -> dict[str, int]:
    """An encoder-decoder's one width, and as many heads of the published width in both stacks."""
    heads = int(section["encoder_attention_heads"])
    head_dim = int(section["d_model"]) // heads
    step = max(1, WIDTH_STEP // head_dim)
    fewer = max(step, round(heads * scale / step) * step)
    return {"d_model": fewer * head_dim, "encoder_attention_heads": fewer, "decoder_attention_heads": fewer}


def _with_ids(value: Any, moved: Mapping[int, int], key: str = "") -> Any:
    """`value` with the ids of special tokens replaced where its keys say that they are ids of tokens."""
    if isinstance(value, dict):
        return {k: _with_ids(v, moved, key if key.endswith("_to_id") else k) for k, v in value.items()}
    if key.endswith(("token_id", "_start_id", "_end_id", "_id_list", "_to_id", "suppress_tokens")):
        if isinstance(value, list):
            return [moved.get(v, v) for v in value]
        return moved.get(value, value)
    return value
