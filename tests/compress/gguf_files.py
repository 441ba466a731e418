"""Small GGUF files made by the format owner's writer, as llama.cpp's converter makes them."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from decoder_models import SIZES, shaken
from numpy.typing import NDArray

from pocketport.compress.ggml.quantize import quantize

FLOATS = {"f32": np.float32, "f16": np.float16}


def llama(**changes: Any) -> torch.nn.Module:
    """A random model of transformers' whose widths are whole super-blocks."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    sizes = {**SIZES, "hidden_size": 256, "intermediate_size": 256, "attention_bias": False, **changes}
    return shaken(AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **sizes))).eval()


def permuted(array: NDArray[Any], heads: int) -> NDArray[Any]:
    """``LlamaModel.permute`` of llama.cpp's converter."""
    return array.reshape(heads, 2, len(array) // heads // 2, *array.shape[1:]).swapaxes(1, 2).reshape(array.shape)


def write_llama(path: Path, model: torch.nn.Module, types: dict[str, str], *, tokens: int = 0) -> Path:
    """A llama file.

    Args:
        path: of the file.
        model: from `llama`.
        types: end of a published name → ggml type of the tensors that end so.
        tokens: of a byte-level tokenizer; 0: none.
    """
    config: Any = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_vocab_size(config.vocab_size)
    if tokens:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("gpt-2")
        writer.add_token_list(["a", "b", "ab", *(f"t{index}" for index in range(3, tokens))])
        writer.add_token_types([1] * tokens)
        writer.add_token_merges(["a b"])
        writer.add_eos_token_id(2)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        array = tensor.numpy()
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.split(".")[-2])
        array = array if heads is None else permuted(array, heads)
        kind = next((kind for end, kind in types.items() if name.endswith(end)), "f32")
        target = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if kind in FLOATS:
            writer.add_tensor(target, array.astype(FLOATS[kind]))
        else:
            code = gguf.GGMLQuantizationType[kind.upper()]
            writer.add_tensor(target, quantize(kind, array, None), raw_dtype=code)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
