"""Small random checkpoints of MiniCPM-V 4.6 and 4.7, saved by transformers in the published layout."""

import json
from pathlib import Path
from typing import Any

import torch
from decoder_models import HYBRID, shaken

from pocketport.compress.synthesis.tokenizer import synthetic_tokenizer

VOCABULARY = 352
NAMES = {
    "image_token": "<|image_pad|>", "video_token": "<|video_pad|>", "image_start_token": "<image>", "image_end_token": "</image>",
    "slice_start_token": "<slice>", "slice_end_token": "</slice>", "image_id_start_token": "<image_id>",
    "image_id_end_token": "</image_id>",
}  # fmt: skip
SPECIAL = {
    token: VOCABULARY - 1 - index
    for index, token in enumerate((*NAMES.values(), "<|im_start|>", "<|im_end|>", "<|endoftext|>"))
}
TEMPLATE = """{%- macro content(parts) -%}
    {%- if parts is string -%}{{ parts }}
    {%- else -%}
        {%- for part in parts -%}
            {%- if part.type == 'image' -%}{{ '<|image_pad|>' }}
            {%- elif 'text' in part -%}{{ part.text }}
            {%- else -%}{{ raise_exception('not text or an image') }}
            {%- endif -%}
            {%- if not loop.last -%}{{ '\\n' }}{%- endif -%}
        {%- endfor -%}
    {%- endif -%}
{%- endmacro -%}
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' + content(message.content) + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""
TEXT = {
    **HYBRID, "model_type": "qwen3_5_text", "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": VOCABULARY, "max_position_embeddings": 2048, "tie_word_embeddings": True,
}  # fmt: skip
VISION = {
    "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 140, "patch_size": 14,
}  # fmt: skip
PROCESSOR = {
    "image_processor_type": "MiniCPMV4_6ImageProcessor", "max_slice_nums": 4, "scale_resolution": 112, "patch_size": 14,
    "slice_mode": True, "downsample_mode": "16x", "use_image_id": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
}  # fmt: skip


def save_minicpmv46(folder: Path, version: str = "4.6", **changes: Any) -> Path:
    """A checkpoint with tokenizer, processor and chat template; `changes` of the top of config.json."""
    from transformers import AutoConfig, AutoModelForImageTextToText

    kind = f"minicpmv{version.replace('.', '_')}"
    tokenizer = synthetic_tokenizer(VOCABULARY, SPECIAL)
    markers = {
        f"{name}_id": SPECIAL[NAMES[f"{name}_token"]]
        for name in ("image_start", "image_end", "slice_start", "slice_end")
    }
    own = {**markers, "newline_id": tokenizer.token_to_id("Ċ")} if version == "4.7" else {}
    keys = {
        "text_config": TEXT, "vision_config": VISION, "insert_layer_id": 1, "image_token_id": SPECIAL["<|image_pad|>"],
        "video_token_id": SPECIAL["<|video_pad|>"], "tie_word_embeddings": True, **own, **changes,
    }  # fmt: skip
    torch.manual_seed(0)
    shaken(AutoModelForImageTextToText.from_config(AutoConfig.for_model(kind, **keys))).save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    processor = {**PROCESSOR, "downsample_mode": changes.get("downsample_mode", "16x")}
    files = {
        "preprocessor_config.json": processor, "generation_config.json": {"eos_token_id": SPECIAL["<|im_end|>"], "max_new_tokens": 8},
        "tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>", **NAMES},
    }  # fmt: skip
    for name, document in files.items():
        (folder / name).write_text(json.dumps(document))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder
