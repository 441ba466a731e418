"""Small random towers, encoders and Idefics3 checkpoints in the published layout."""

import json
from pathlib import Path
from typing import Any

import torch
from decoder_models import shaken
from safetensors.torch import save_file

from pocketport.compress.synthesis.tokenizer import synthetic_tokenizer

VISION: dict[str, Any] = {
    "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 60,
    "patch_size": 14,
}  # fmt: skip
TEXT: dict[str, Any] = {
    "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 300,
    "max_position_embeddings": 16, "bos_token_id": 0, "eos_token_id": 2,
}  # fmt: skip
NAFLEX = {**VISION, "num_patches": 16}
ENCODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "siglip": ("SiglipModel", {"model_type": "siglip", "vision_config": VISION, "text_config": {**TEXT, "projection_size": 48}}),
    "siglip2": ("Siglip2Model", {"model_type": "siglip2", "vision_config": NAFLEX, "text_config": TEXT}),
    "clip": ("CLIPModel", {
        "model_type": "clip", "projection_dim": 40, "vision_config": VISION, "text_config": {**TEXT, "hidden_size": 32}}),
    "clip_new_end": ("CLIPModel", {
        "model_type": "clip", "projection_dim": 40, "vision_config": {**VISION, "hidden_act": "gelu"},
        "text_config": {**TEXT, "eos_token_id": 290}}),
    "siglip_vision_model": ("SiglipVisionModel", {"model_type": "siglip_vision_model", **VISION}),
    "siglip_headless": ("SiglipVisionModel", {"model_type": "siglip_vision_model", **VISION, "vision_use_head": False}),
    "siglip2_vision_model": ("Siglip2VisionModel", {"model_type": "siglip2_vision_model", **NAFLEX}),
    "clip_vision_model": ("CLIPVisionModel", {"model_type": "clip_vision_model", **VISION}),
    "clip_projected": ("CLIPVisionModelWithProjection", {"model_type": "clip_vision_model", "projection_dim": 40, **VISION}),
}  # fmt: skip
WORDS = 352
SPECIAL = {
    "<|im_start|>": 1, "<global-img>": 300, "<fake_token_around_image>": 301, "<image>": 302, "<end_of_utterance>": 303,
    **{f"<row_{row + 1}_col_{column + 1}>": 304 + 6 * row + column for row in range(6) for column in range(6)},
}  # fmt: skip
TILES: dict[str, Any] = {
    "size": {"longest_edge": 168}, "max_image_size": {"longest_edge": 56}, "resample": 1, "do_image_splitting": True,
    "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5],
}  # fmt: skip
LLAMA: dict[str, Any] = {
    "model_type": "llama", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": WORDS, "max_position_embeddings": 1024, "rms_norm_eps": 1e-5,
    "rope_theta": 1e5, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2,
}  # fmt: skip
IDEFICS3: dict[str, Any] = {
    "scale_factor": 2, "image_token_id": 302, "tie_word_embeddings": False, "text_config": LLAMA,
    "vision_config": {**VISION, "image_size": 56},
}  # fmt: skip
ARCHITECTURES = {"idefics3": "Idefics3ForConditionalGeneration", "smolvlm": "SmolVLMForConditionalGeneration"}


def save_model(folder: Path, architecture: str, config: dict[str, Any], *, prefix: str = "") -> Path:
    """Write ``config.json`` and transformers' own tensors with `prefix` before their names."""
    import transformers

    torch.manual_seed(0)
    settings = transformers.AutoConfig.for_model(**config)
    model = shaken(getattr(transformers, architecture)(settings))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**config, "architectures": [architecture]}))
    tensors = {prefix + name: tensor.clone().contiguous() for name, tensor in model.state_dict().items()}
    save_file(tensors, folder / "model.safetensors")
    return folder


def save_encoders(folder: Path, kind: str) -> Path:
    """A checkpoint of one of `ENCODERS`; towers alone with their published prefix."""
    architecture, config = ENCODERS[kind]
    prefix = "vision_model." if architecture.endswith("VisionModel") else ""
    return save_model(folder, architecture, config, prefix=prefix)


def save_idefics3(folder: Path, kind: str) -> Path:
    """A checkpoint of ``idefics3`` or ``smolvlm`` with processor and tokenizer."""
    save_model(folder, ARCHITECTURES[kind], {"model_type": kind, **IDEFICS3})
    (folder / "preprocessor_config.json").write_text(json.dumps(TILES))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 303}))
    synthetic_tokenizer(WORDS, SPECIAL).save(str(folder / "tokenizer.json"))
    return folder
