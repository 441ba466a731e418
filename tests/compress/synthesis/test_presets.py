"""Presets: published shapes, and what a scale makes of them."""

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pocketport.compress.families.qwen_vl.config import MODEL_TYPES, QwenVLConfig
from pocketport.compress.synthesis.layout import layout_of
from pocketport.compress.synthesis.preset import load_preset, preset_names, scaled
from pocketport.errors import InputError, UsageError

# What the model hubs count in the published safetensors files; of 1.0 and 2.0 the size of MiniCPM-V 2's two files
# (6,870,008,816 bytes of bfloat16, less two headers of about 38 kB), of 4.6 of its one file (2,600,957,528 bytes, less 101 kB).
PUBLISHED = {
    "minicpm-v-1.0": 3_434_965_792, "minicpm-v-2.0": 3_434_965_792, "minicpm-llama3-v-2.5": 8_537_092_336,
    "minicpm-v-2.6": 8_099_175_152, "minicpm-v-4.0": 4_059_533_040, "minicpm-v-4.5": 8_695_895_280, "minicpm-v-4.6": 1_300_428_016,
    "llama-3-8b": 8_030_261_248, "qwen2-7b": 7_615_616_512, "qwen2-1.5b": 1_543_714_304, "qwen3-8b": 8_190_735_360,
    "minicpm-2b": 2_724_880_896, "minicpm4-0.5b": 433_873_920, "gemma-3-270m": 268_098_176, "gemma-3-1b": 999_885_952,
    "qwen2.5-vl-3b": 3_754_622_976, "qwen2.5-vl-7b": 8_292_166_656, "qwen3-vl-2b": 2_127_532_032,
    "qwen3-vl-4b": 4_437_815_808, "qwen3-vl-8b": 8_767_123_696, "smollm2-135m": 134_515_008, "minilm-l6-v2": 22_713_216, "bert-base": 109_482_240,
    "whisper-base": 72_593_920,
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_as_many_parameters_as_published(name: str) -> None:
    assert sum(map(math.prod, layout_of(load_preset(name).config).values())) == PUBLISHED[name]


@pytest.mark.parametrize(
    ("name", "tensor", "shape"),
    [
        ("minicpm-v-1.0", "vpm.pos_embed", (1, 729, 1152)),
        ("minicpm-v-2.0", "vpm.blocks.25.attn.qkv.weight", (3456, 1152)),
        ("minicpm-v-2.0", "resampler.pos_embed", (64, 2304)),
        ("minicpm-llama3-v-2.5", "vpm.embeddings.position_embedding.weight", (4900, 1152)),
        ("minicpm-llama3-v-2.5", "resampler.query", (96, 4096)),
        ("minicpm-v-2.6", "llm.model.layers.27.self_attn.k_proj.bias", (512,)),
        ("minicpm-v-4.0", "llm.lm_head.weight", (73448, 2560)),
        ("minicpm-v-4.5", "llm.model.layers.35.self_attn.q_norm.weight", (128,)),
        ("qwen2.5-vl-7b", "visual.blocks.31.mlp.gate_proj.weight", (3420, 1280)),
        ("qwen2.5-vl-7b", "model.layers.27.self_attn.k_proj.bias", (512,)),
        ("qwen3-vl-4b", "model.visual.deepstack_merger_list.2.linear_fc2.weight", (2560, 4096)),
        ("qwen3-vl-4b", "model.language_model.layers.35.self_attn.q_norm.weight", (128,)),
        ("gemma-3-270m", "model.layers.17.pre_feedforward_layernorm.weight", (640,)),
        ("minilm-l6-v2", "encoder.layer.5.output.LayerNorm.weight", (384,)),
        ("whisper-base", "model.decoder.layers.5.encoder_attn.v_proj.bias", (512,)),
    ],
)
def test_tensors_have_their_published_names(name: str, tensor: str, shape: tuple[int, ...]) -> None:
    layout = layout_of(load_preset(name).config)
    assert layout[tensor] == shape


def test_the_dropped_block_and_tied_heads_are_not_stored() -> None:
    assert not any(n.startswith("vpm.blocks.26.") for n in layout_of(load_preset("minicpm-v-2.0").config))
    for name in ("smollm2-135m", "minicpm-2b"):
        assert "lm_head.weight" not in layout_of(load_preset(name).config)
    whisper = layout_of(load_preset("whisper-base").config)
    assert not [name for name in whisper if name.startswith("proj_out") or name.endswith("k_proj.bias")]


def test_unscaled_is_as_published() -> None:
    preset = load_preset("minicpm-v-2.0")
    assert scaled(preset, 1.0, None) == preset
    assert "vision_config" not in preset.config, "the published file names its tower only"
    assert scaled(preset, 1.0, 3).config["vision_config"]["num_hidden_layers"] == 3


def sections(config: Any) -> list[Any]:
    nested = [v for k, v in config.items() if k.endswith("_config") and isinstance(v, dict)]
    return [config, *(s for v in nested for s in sections(v))]


@settings(max_examples=100, deadline=None)
@given(name=st.sampled_from(preset_names()), scale=st.floats(0.01, 1.5), layers=st.none() | st.integers(1, 40))
def test_every_scale_gives_a_model(name: str, scale: float, layers: int | None) -> None:
    preset = scaled(load_preset(name), scale, layers)
    for section in sections(preset.config):
        heads, kv = section.get("num_attention_heads"), section.get("num_key_value_heads")
        if heads and section.get("hidden_size"):
            assert section["hidden_size"] % heads == 0
            assert heads % (kv or heads) == 0
        assert layers is None or section.get("num_hidden_layers", 1) <= layers
        if section.get("layer_types"):
            assert len(section["layer_types"]) == section["num_hidden_layers"]
    if preset.config["model_type"] in MODEL_TYPES:
        QwenVLConfig.from_hf(preset.config)  # widths and lists of layers fit each other
    text = preset.config.get("text_config") or preset.config
    ids = list(preset.special_tokens.values())
    assert len(set(ids)) == len(ids) and all(0 <= index < text["vocab_size"] for index in ids)


def test_token_ids_move_with_the_vocabulary() -> None:
    preset = scaled(load_preset("minicpm-v-2.6"), 0.1, None)
    end = preset.special_tokens["<|im_end|>"]
    assert preset.config["eos_token_id"] == end
    assert preset.files["generation_config.json"]["eos_token_id"][0] == end


def test_tables_of_tokens_move_too() -> None:
    preset = scaled(load_preset("whisper-base"), 0.05, 1)
    generation = preset.files["generation_config.json"]
    assert generation["lang_to_id"]["<|su|>"] == preset.special_tokens["<|su|>"] < preset.config["vocab_size"]
    assert generation["task_to_id"]["translate"] == preset.special_tokens["<|translate|>"]
    assert generation["begin_suppress_tokens"] == [220, preset.special_tokens["<|endoftext|>"]]
    assert preset.config["d_model"] == 64 * preset.config["decoder_attention_heads"] == 128


@pytest.mark.parametrize(("scale", "layers"), [(0, None), (5, None), (1, 0)])
def test_scales_that_are_refused(scale: float, layers: int | None) -> None:
    with pytest.raises(UsageError, match=r"--scale|--layers"):
        scaled(load_preset("smollm2-135m"), scale, layers)


def test_an_unknown_preset_and_an_unknown_architecture() -> None:
    with pytest.raises(UsageError, match=r"minicpm-v-2\.6"):
        load_preset("minicpm-v-2_6")
    with pytest.raises(InputError, match="Marvellous"):
        layout_of({"model_type": "llama", "architectures": ["Marvellous"]})
