"""Published configurations, as their config.json has them, and what is refused."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocketport.compress.families.decoder.config import FULL, LINEAR, SLIDING, DecoderConfig, DeltaConfig
from pocketport.errors import InputError

LLAMA3_8B: dict[str, Any] = {
    "model_type": "llama", "attention_bias": False, "hidden_act": "silu", "hidden_size": 4096, "intermediate_size": 14336,
    "max_position_embeddings": 8192, "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05, "rope_scaling": None, "rope_theta": 500000.0, "tie_word_embeddings": False, "vocab_size": 128256,
}  # fmt: skip
GEMMA3_4B: dict[str, Any] = {
    "model_type": "gemma3", "mm_tokens_per_image": 256, "vision_config": {"hidden_size": 1152},
    "text_config": {"hidden_size": 2560, "intermediate_size": 10240, "model_type": "gemma3_text", "num_hidden_layers": 34,
                    "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024},
}  # fmt: skip
QWEN25_VL_3B: dict[str, Any] = {
    "model_type": "qwen2_5_vl", "hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36, "num_attention_heads": 16,
    "num_key_value_heads": 2, "max_position_embeddings": 128000, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0,
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}, "sliding_window": 32768, "use_sliding_window": False,
    "max_window_layers": 70, "tie_word_embeddings": True, "vocab_size": 151936, "hidden_act": "silu",
}  # fmt: skip
QWEN3_VL_4B: dict[str, Any] = {
    "model_type": "qwen3_vl", "tie_word_embeddings": True,
    "text_config": {"model_type": "qwen3_vl_text", "attention_bias": False, "head_dim": 128, "hidden_act": "silu", "hidden_size": 2560,
                    "intermediate_size": 9728, "max_position_embeddings": 262144, "num_attention_heads": 32, "num_hidden_layers": 36,
                    "num_key_value_heads": 8, "rms_norm_eps": 1e-06, "rope_theta": 5000000, "vocab_size": 151936,
                    "rope_scaling": {"mrope_interleaved": True, "mrope_section": [24, 20, 20], "rope_type": "default"}},
}  # fmt: skip
MINICPM_2B: dict[str, Any] = {
    "model_type": "minicpm", "hidden_act": "silu", "hidden_size": 2304, "intermediate_size": 5760, "max_position_embeddings": 4096,
    "num_attention_heads": 36, "num_hidden_layers": 40, "num_key_value_heads": 36, "rms_norm_eps": 1e-05, "rope_scaling": None,
    "vocab_size": 122753, "scale_emb": 12, "dim_model_base": 256, "scale_depth": 1.4,
}  # fmt: skip
MISTRAL_7B: dict[str, Any] = {
    "model_type": "mistral", "hidden_act": "silu", "hidden_size": 4096, "intermediate_size": 14336, "max_position_embeddings": 32768,
    "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8, "rms_norm_eps": 1e-05, "rope_theta": 10000.0,
    "sliding_window": 4096, "tie_word_embeddings": False, "vocab_size": 32000,
}  # fmt: skip
QWEN35_08B: dict[str, Any] = {
    "model_type": "qwen3_5_text", "attention_bias": False, "full_attention_interval": 4, "head_dim": 256, "hidden_act": "silu",
    "hidden_size": 1024, "intermediate_size": 3584, "linear_conv_kernel_dim": 4, "linear_key_head_dim": 128,
    "linear_num_key_heads": 16, "linear_num_value_heads": 16, "linear_value_head_dim": 128, "max_position_embeddings": 262144,
    "num_attention_heads": 8, "num_hidden_layers": 24, "num_key_value_heads": 2, "rms_norm_eps": 1e-06,
    "rope_parameters": {"mrope_interleaved": True, "mrope_section": [11, 11, 10], "partial_rotary_factor": 0.25,
                        "rope_theta": 10000000, "rope_type": "default"},
    "tie_word_embeddings": True, "vocab_size": 248320,
}  # fmt: skip


def test_llama() -> None:
    config = DecoderConfig.from_hf(LLAMA3_8B)
    assert (config.head_dim, config.attention_scalar, config.rope.theta, config.norm_eps) == (128, 128, 5e5, 1e-5)
    assert config.kinds == (FULL,) and config.input_prefix(FULL) == "" and all(config.rotary)
    assert not (config.qkv_bias or config.output_bias or config.mlp_bias or config.qk_norm or config.unit_offset_norm)
    assert config.embedding_scale == config.residual_scale == config.logits_scale == 1


def test_gemma3_fills_in_what_its_file_leaves_out() -> None:
    config = DecoderConfig.from_hf(GEMMA3_4B)
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim, config.vocab_size) == (
        8,
        4,
        256,
        262208,
    )
    assert config.layer_types == tuple(FULL if i % 6 == 5 else SLIDING for i in range(34))
    assert (config.rope.kind, config.rope.factor, config.rope.theta) == ("linear", 8.0, 1e6)
    assert config.sliding_rope is not None and (config.sliding_rope.kind, config.sliding_rope.theta) == ("default", 1e4)
    assert [config.input_prefix(kind) for kind in config.kinds] == ["", "sliding_"]
    assert [config.rope_prefix(kind) for kind in config.kinds] == ["", "sliding_"]
    assert config.tie_word_embeddings and config.activation == "gelu_tanh" and config.embedding_scale == 2560**0.5
    cut = config.truncated(2)
    assert cut.kinds == (SLIDING,) and cut.input_prefix(SLIDING) == "" and cut.rope_of(SLIDING).theta == 1e4


def test_qwen_vl() -> None:
    old, new = DecoderConfig.from_hf(QWEN25_VL_3B), DecoderConfig.from_hf(QWEN3_VL_4B)
    assert old.rope.sections == (16, 24, 24) and not old.rope.interleaved and old.qkv_bias and not old.output_bias
    assert new.rope.sections == (24, 20, 20) and new.rope.interleaved and new.qk_norm and not new.qkv_bias
    assert old.kinds == new.kinds == (FULL,) and new.tie_word_embeddings and old.tie_word_embeddings


def test_minicpm() -> None:
    config = DecoderConfig.from_hf(MINICPM_2B)
    assert config.embedding_scale == 12 and config.logits_scale == 256 / 2304 and config.tie_word_embeddings
    assert config.residual_scale == pytest.approx(1.4 / 40**0.5)
    sparse = DecoderConfig.from_hf({**MINICPM_2B, "sparse_config": {"dense_len": 1024, "topk": 64}})
    assert sparse.max_position_embeddings == 1024, "attention is full up to there"


def test_qwen35() -> None:
    config = DecoderConfig.from_hf(QWEN35_08B)
    assert config.layer_types[:5] == (LINEAR, LINEAR, LINEAR, FULL, LINEAR)
    assert config.delta == DeltaConfig(key_heads=16, value_heads=16, key_width=128, value_width=128, kernel=4)
    assert (config.rope.width, config.rope.still) == (64, 192)
    assert config.kinds == (FULL,)
    assert config.state_names()[:8] == (
        "conv_0", "state_0", "conv_1", "state_1", "conv_2", "state_2", "key_3", "value_3",
    )  # fmt: skip


def test_mistral() -> None:
    assert DecoderConfig.from_hf(MISTRAL_7B).kinds == (SLIDING,)
    assert DecoderConfig.from_hf(MISTRAL_7B).input_prefix(SLIDING) == ""
    assert DecoderConfig.from_hf({**MISTRAL_7B, "sliding_window": None}).kinds == (FULL,)


def test_the_decoder_of_a_composite_with_its_keys_at_the_top() -> None:
    config = {**LLAMA3_8B, "model_type": "minicpmv", "version": "2.6"}
    with pytest.raises(InputError, match="minicpmv"):
        DecoderConfig.from_hf(config)
    assert DecoderConfig.from_hf({**config, "model_type": "qwen2"}).qkv_bias


@pytest.mark.parametrize(
    ("base", "change", "key"),
    [(LLAMA3_8B, {"model_type": "minicpm3"}, "model_type"), (LLAMA3_8B, {"hidden_act": "relu"}, "hidden_act"),
     (LLAMA3_8B, {"hidden_size": None}, "hidden_size"), (LLAMA3_8B, {"vocab_size": -1}, "vocab_size"),
     (LLAMA3_8B, {"num_hidden_layers": 10**9}, "num_hidden_layers"), (LLAMA3_8B, {"num_key_value_heads": 7}, "num_key_value_heads"),
     (LLAMA3_8B, {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_type"), (LLAMA3_8B, {"rope_scaling": [1]}, "rope_scaling"),
     (LLAMA3_8B, {"head_dim": 33}, "head_dim"), (LLAMA3_8B, {"rms_norm_eps": "small"}, "rms_norm_eps"),
     ({**LLAMA3_8B, "model_type": "qwen3"}, {"layer_types": ["full_attention"]}, "layer_types"),
     ({**LLAMA3_8B, "model_type": "qwen3"}, {"layer_types": ["linear_attention"] * 32}, "linear_attention"),
     (LLAMA3_8B, {"model_type": "smollm3", "no_rope_layers": [1]}, "no_rope_layers"),
     (GEMMA3_4B["text_config"], {"final_logit_softcapping": 30.0}, "final_logit_softcapping"),
     (GEMMA3_4B["text_config"], {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
     (QWEN35_08B, {"layer_types": ["mamba"] * 24}, "mamba"), (QWEN35_08B, {"layer_types": ["linear_attention"] * 24}, "alone"), (QWEN35_08B, {"attention_bias": True}, "attention_bias"),
     (QWEN35_08B, {"linear_num_value_heads": 17}, "linear_num_value_heads"), (QWEN35_08B, {"linear_conv_kernel_dim": 1}, "kernel"),
     (LLAMA3_8B, {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
     (MINICPM_2B, {"sparse_config": {"dense_len": "all"}}, "sparse_config")],
)  # fmt: skip
def test_configurations_that_are_refused(base: dict[str, Any], change: dict[str, Any], key: str) -> None:
    with pytest.raises(InputError, match=key):
        DecoderConfig.from_hf({**base, **change})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 5000) | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=4,
)


@given(
    base=st.sampled_from([LLAMA3_8B, GEMMA3_4B, QWEN25_VL_3B, QWEN3_VL_4B, MINICPM_2B, MISTRAL_7B, QWEN35_08B]),
    changes=st.dictionaries(st.sampled_from(sorted({*LLAMA3_8B, *QWEN25_VL_3B, *MINICPM_2B, *QWEN35_08B, "text_config", "layer_types", "rope_parameters"})), JSON),
)  # fmt: skip
def test_any_configuration_gives_a_decoder_or_a_typed_error(base: dict[str, Any], changes: dict[str, Any]) -> None:
    try:
        config = DecoderConfig.from_hf({**base, **changes})
    except InputError:
        return
    assert len(config.layer_types) == len(config.rotary) == config.num_hidden_layers
    assert config.num_attention_heads % config.num_key_value_heads == 0
