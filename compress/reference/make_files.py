"""Writes the reference model's small files: configuration, tokenizer, preprocessor. Run once per change."""

import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from pocketport.compress.families.minicpmv.config import MiniCPMVConfig, SliceConfig
from pocketport.compress.families.minicpmv.prompt import encode_prompt
from pocketport.compress.families.minicpmv.slicing import candidate_grids, max_patches

SPECIAL = [
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<image>",
    "</image>",
    "<slice>",
    "</slice>",
    "<unk>",
    "<pad>",
]
ROLES = ["user", "assistant"]
CONFIG = {
    "version": "2.5",
    "architectures": ["MiniCPMV"],
    "model_type": "minicpmv",
    "attention_bias": False,
    "attention_dropout": 0.0,
    "batch_vision_input": True,
    "bos_token_id": 256,
    "drop_vision_last_layer": False,
    "eos_token_id": 260,
    "hidden_act": "silu",
    "hidden_size": 256,
    "image_size": 112,
    "initializer_range": 0.02,
    "intermediate_size": 768,
    "max_position_embeddings": 512,
    "mm_use_im_start_end": True,
    "num_attention_heads": 4,
    "num_hidden_layers": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 266,
    "patch_size": 14,
    "pretraining_tp": 1,
    "query_num": 32,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "slice_config": {"max_slice_nums": 4, "scale_resolution": 112, "patch_size": 14, "model_type": "minicpmv"},
    "slice_mode": True,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "vision_config": {
        "hidden_size": 192,
        "image_size": 336,
        "intermediate_size": 768,
        "model_type": "idefics2",
        "num_attention_heads": 3,
        "num_hidden_layers": 6,
        "patch_size": 14,
    },
    "vocab_size": 288,
}


def byte_symbols() -> dict[str, int]:
    """The byte-level alphabet: each byte's printable stand-in → the byte's value."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in printable]
    symbols = {chr(byte): byte for byte in printable}
    symbols.update({chr(256 + index): byte for index, byte in enumerate(hidden)})
    return dict(sorted(symbols.items(), key=lambda item: item[1]))


def build_tokenizer() -> Tokenizer:
    """A byte-level BPE without merges: token ids 0 … 255 are the bytes."""
    tokenizer = Tokenizer(models.BPE(vocab=byte_symbols(), merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIAL])
    tokenizer.add_tokens([AddedToken(text, single_word=True, normalized=False) for text in ROLES])
    return tokenizer


def main() -> None:
    """Write the files next to this module."""
    folder = Path(__file__).parent
    config = MiniCPMVConfig.model_validate(CONFIG)
    tokenizer = build_tokenizer()
    grids = [None, *(g for n in range(2, 5) for g in candidate_grids(n, config.slice_config.max_slice_nums))]
    lengths = [
        len(encode_prompt(tokenizer, "Read the text.", query_num=config.query_num, grid=grid).input_ids)
        for grid in grids
    ]
    documents: dict[str, object] = {
        "config.json": CONFIG,
        "generation_config.json": {
            "bos_token_id": 256,
            "eos_token_id": 260,
            "pad_token_id": 266,
            "do_sample": False,
            "max_new_tokens": 32,
        },
        "preprocessor_config.json": {
            "image_processor_type": "MiniCPMVImageProcessor",
            "feature_extract_params": None,
            "image_feature_size": config.query_num,
            "im_start": "<image>",
            "im_end": "</image>",
            "slice_start": "<slice>",
            "slice_end": "</slice>",
            "unk": "<unk>",
            "max_slice_nums": config.slice_config.max_slice_nums,
            "scale_resolution": config.slice_config.scale_resolution,
            "patch_size": config.slice_config.patch_size,
            "slice_mode": True,
            "norm_mean": [0.5, 0.5, 0.5],
            "norm_std": [0.5, 0.5, 0.5],
            "version": 2.5,
            "max_patches": max_patches(SliceConfig.model_validate(CONFIG["slice_config"])),
            "max_prompt_tokens": max(lengths),
        },
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": "<|begin_of_text|>",
            "eos_token": "<|eot_id|>",
            "pad_token": "<pad>",
            "unk_token": "<unk>",
            "clean_up_tokenization_spaces": False,
            "model_max_length": 512,
            "chat_template": (
                "{{ bos_token }}{% for message in messages %}<|start_header_id|>{{ message['role'] }}"
                "<|end_header_id|>\n\n{{ message['content'] }}<|eot_id|>{% endfor %}"
                "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
            ),
        },
    }
    for name, document in documents.items():
        (folder / name).write_text(json.dumps(document, indent=2) + "\n", "utf-8")
    tokenizer.save(str(folder / "tokenizer.json"))


if __name__ == "__main__":
    main()
