"""Small random Qwen-VL checkpoints in the published layout: configuration, tensors, processor, tokenizer."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from decoder_models import shaken

from pocketport.compress.synthesis.tokenizer import synthetic_tokenizer

WORDS = 512
TOKENS = {
    "<|endoftext|>": 500, "<|im_start|>": 501, "<|im_end|>": 502, "<|vision_start|>": 503, "<|vision_end|>": 504,
    "<|image_pad|>": 505, "<|video_pad|>": 506,
}  # fmt: skip
IDS = {
    "vision_start_token_id": 503, "vision_end_token_id": 504, "image_token_id": 505, "video_token_id": 506,
    "bos_token_id": 500, "eos_token_id": 502,
}  # fmt: skip
TEXT = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": WORDS, "max_position_embeddings": 512, "rms_norm_eps": 1e-6,
}  # fmt: skip
FLAT = {**TEXT, "rope_theta": 1e6, "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]}}
QWEN3 = {
    **TEXT, "model_type": "qwen3_vl_text", "head_dim": 32, "rope_theta": 5e6,
    "rope_scaling": {"rope_type": "default", "mrope_interleaved": True, "mrope_section": [6, 5, 5]},
}  # fmt: skip
CLIP = {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}
HALF = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
PATCHES = {"temporal_patch_size": 2, "merge_size": 2}
MODELS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "qwen2_vl": (
        {**FLAT, **IDS, "model_type": "qwen2_vl", "vision_config": {
            "depth": 2, "embed_dim": 48, "hidden_size": 64, "mlp_ratio": 2, "num_heads": 3, "patch_size": 14}},
        {**CLIP, **PATCHES, "patch_size": 14, "min_pixels": 3136, "max_pixels": 12845056},
    ),
    "qwen2_5_vl": (
        {**FLAT, **IDS, "model_type": "qwen2_5_vl", "vision_config": {
            "depth": 4, "hidden_size": 48, "intermediate_size": 60, "out_hidden_size": 64, "num_heads": 3,
            "patch_size": 14, "window_size": 112, "fullatt_block_indexes": [1, 3]}},
        {**CLIP, **PATCHES, "patch_size": 14, "min_pixels": 3136, "max_pixels": 12845056},
    ),
    "qwen3_vl": (
        {**IDS, "model_type": "qwen3_vl", "text_config": QWEN3, "vision_config": {
            "depth": 4, "hidden_size": 48, "intermediate_size": 80, "out_hidden_size": 64, "num_heads": 3,
            "patch_size": 16, "num_position_embeddings": 81, "deepstack_visual_indexes": [0, 2]}},
        {**HALF, **PATCHES, "patch_size": 16, "size": {"shortest_edge": 4096, "longest_edge": 16777216}},
    ),
}  # fmt: skip


def save_qwen_vl(folder: Path, kind: str, changes: Mapping[str, Any] | None = None) -> Path:
    """A checkpoint of this ``model_type`` with the names that were published; `changes` go into config.json."""
    from transformers import AutoConfig, AutoModelForImageTextToText

    config, processor = MODELS[kind]
    config = {**json.loads(json.dumps(config)), **(changes or {})}
    torch.manual_seed(0)
    settings = AutoConfig.for_model(**json.loads(json.dumps(config)))
    shaken(AutoModelForImageTextToText.from_config(settings)).save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [502, 500]}))
    synthetic_tokenizer(WORDS, TOKENS).save(str(folder / "tokenizer.json"))
    return folder
