"""A small random Whisper in the published layout."""

import json
from pathlib import Path
from typing import Any

import torch
from decoder_models import shaken

CONFIG: dict[str, Any] = {
    "d_model": 32, "encoder_layers": 3, "encoder_attention_heads": 2, "encoder_ffn_dim": 96, "decoder_layers": 2,
    "decoder_attention_heads": 4, "decoder_ffn_dim": 64, "vocab_size": 120, "num_mel_bins": 16, "max_source_positions": 50,
    "max_target_positions": 24, "pad_token_id": 100, "bos_token_id": 100, "eos_token_id": 100, "decoder_start_token_id": 101,
}  # fmt: skip
GENERATION: dict[str, Any] = {
    "decoder_start_token_id": 101, "eos_token_id": 100, "pad_token_id": 100, "bos_token_id": 100, "is_multilingual": True,
    "lang_to_id": {"<|en|>": 102, "<|zh|>": 103, "<|de|>": 104}, "task_to_id": {"transcribe": 106, "translate": 105},
    "no_timestamps_token_id": 119, "suppress_tokens": [1, 2, 7], "begin_suppress_tokens": [20, 100], "max_length": 24,
}  # fmt: skip
AUDIO: dict[str, Any] = {
    "feature_extractor_type": "WhisperFeatureExtractor", "feature_size": 16, "sampling_rate": 16000, "hop_length": 160,
    "chunk_length": 1, "n_fft": 400, "padding_value": 0.0,
}  # fmt: skip


def save_whisper(folder: Path, seed: int = 0, **changes: Any) -> Path:
    """Write the checkpoint as it is published: weights, ``config.json``, generation and preprocessor settings."""
    import transformers

    torch.manual_seed(seed)
    model = shaken(transformers.WhisperForConditionalGeneration(transformers.WhisperConfig(**{**CONFIG, **changes})))
    with torch.no_grad():  # answers that differ from token to token, and from sound to sound
        model.model.decoder.embed_positions.weight *= 10
        for layer in model.model.decoder.layers:
            layer.encoder_attn.q_proj.weight *= 8
            layer.encoder_attn.out_proj.weight *= 8
    model.save_pretrained(folder)
    for name, document in (("generation_config", GENERATION), ("preprocessor_config", AUDIO)):
        (folder / f"{name}.json").write_text(json.dumps(document))
    return folder
