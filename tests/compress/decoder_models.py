"""Small random checkpoints of every decoder, saved by transformers in the published layout."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

SIZES = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 160, "max_position_embeddings": 512, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
LLAMA3 = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 128}  # fmt: skip
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 128}
LONGROPE = {"rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 256,
            "short_factor": [1.0 + 0.1 * i for i in range(8)], "long_factor": [1.0 + 0.3 * i for i in range(8)]}  # fmt: skip
HYBRID = {
    "num_hidden_layers": 4, "head_dim": 32, "linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 16,
    "linear_value_head_dim": 24,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.25, "mrope_section": [2, 1, 1],
                        "mrope_interleaved": True},
}  # fmt: skip
MODELS: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", "attention_bias": True, "mlp_bias": True},
    "llama-multi-head": {"model_type": "llama", "num_key_value_heads": 4, "tie_word_embeddings": True},
    "llama3-rope": {"model_type": "llama", "rope_parameters": LLAMA3, "head_dim": 32},
    "llama-linear-rope": {"model_type": "llama", "rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}},
    "llama-longrope": {"model_type": "llama", "rope_parameters": LONGROPE},
    "mistral": {"model_type": "mistral", "sliding_window": 24},
    "mistral-full": {"model_type": "mistral", "sliding_window": None},
    "qwen2": {"model_type": "qwen2"},
    "qwen2-sliding": {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 20, "max_window_layers": 1},
    "qwen3": {"model_type": "qwen3", "head_dim": 32},
    "qwen3-yarn": {"model_type": "qwen3", "head_dim": 32, "rope_parameters": YARN, "tie_word_embeddings": True},
    "gemma3_text": {"model_type": "gemma3_text", "head_dim": 32, "sliding_window": 16, "query_pre_attn_scalar": 24,
                    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"], "num_hidden_layers": 3,
                    "rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                                        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}},
    "smollm3": {"model_type": "smollm3", "num_hidden_layers": 4},
    "qwen3_5": {"model_type": "qwen3_5_text", **HYBRID},
    "qwen3_5-shared-keys": {"model_type": "qwen3_5_text", **HYBRID, "linear_num_value_heads": 4, "tie_word_embeddings": True,
                            "layer_types": ["linear_attention", "full_attention", "linear_attention"], "num_hidden_layers": 3},
}  # fmt: skip


def shaken(model: torch.nn.Module) -> torch.nn.Module:
    """The model with norms and biases that matter: they start as ones and zeros."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter += 0.3 * torch.randn_like(parameter)
            else:
                parameter *= 4.0
    return model


def save_decoder(folder: Path, name: str) -> Path:
    """The checkpoint `name` of `MODELS` under `folder`."""
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = {**SIZES, **MODELS[name]}
    config = AutoConfig.for_model(settings.pop("model_type"), **settings)
    torch.manual_seed(0)
    shaken(AutoModelForCausalLM.from_config(config)).save_pretrained(folder)
    return folder


def save_minicpm(folder: Path, **changes: Any) -> Path:
    """A MiniCPM checkpoint in the layout of openbmb/MiniCPM-2B-sft-bf16 (and, with ``rope_scaling``, of MiniCPM4)."""
    config = {
        **SIZES, "architectures": ["MiniCPMForCausalLM"], "model_type": "minicpm", "hidden_act": "silu", "rms_norm_eps": 1e-5,
        "scale_emb": 12, "dim_model_base": 16, "scale_depth": 1.4, "rope_scaling": None, **changes,
    }  # fmt: skip
    torch.manual_seed(1)
    head = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    width, inner = config["hidden_size"], config["intermediate_size"]
    heads, kv = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (config["vocab_size"], width),
        "model.norm.weight": (width,),
    }
    for i in range(config["num_hidden_layers"]):
        path = f"model.layers.{i}"
        shapes |= {f"{path}.{n}_layernorm.weight": (width,) for n in ("input", "post_attention")}
        shapes |= {
            f"{path}.self_attn.{n}_proj.weight": (size, width) for n, size in (("q", heads), ("k", kv), ("v", kv))
        }
        shapes |= {f"{path}.self_attn.o_proj.weight": (width, heads), f"{path}.mlp.down_proj.weight": (width, inner)}
        shapes |= {f"{path}.mlp.{n}_proj.weight": (inner, width) for n in ("gate", "up")}
    if not config.get("tie_word_embeddings", True):
        shapes["lm_head.weight"] = (config["vocab_size"], width)
    weights = {n: torch.randn(s) * (0.3 if len(s) == 1 else 0.1) + (len(s) == 1) for n, s in shapes.items()}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(weights, folder / "model.safetensors")
    return folder
