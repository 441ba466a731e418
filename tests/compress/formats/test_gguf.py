"""GGUF files that we write: transformers and the package gguf read them; llama.cpp itself is asked in benchmarks."""

import json
import re
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from decoder_models import save_decoder, save_minicpm
from ggml_library import dequantized_by_gguf
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from written_formats import Written, written

from pocketport.compress.bundle import ModelBundle
from pocketport.compress.families.registry import Lengths, family_of
from pocketport.compress.formats.gguf import GgufFormat
from pocketport.compress.sources.open import open_source
from pocketport.compress.synthesis.write import synthesize
from pocketport.errors import InputError, UsageError

QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PROSE = "The quick brown fox jumps over the lazy dog; 1234 dogs don't jump. Ünïcode naïveté, and     spaces.\n\n" * 3


def with_tokenizer(folder: Path) -> Path:
    """A byte-level tokenizer beside a checkpoint, with Qwen2's pre-tokenizer."""
    words = json.loads((folder / "config.json").read_text())["vocab_size"]
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(QWEN2), "isolated")
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, level])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator([PROSE], trainers.BpeTrainer(vocab_size=words - 2, show_progress=False))
    tokenizer.add_special_tokens([AddedToken("<|end|>", special=True)])
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def reader(done: Written, pattern: str = "*.gguf") -> gguf.GGUFReader:
    (path,) = (p for p in done.directory.glob(pattern) if p.name.startswith("mmproj") == pattern.startswith("mmproj"))
    return gguf.GGUFReader(path)


def tensors(read: gguf.GGUFReader) -> dict[str, NDArray[Any]]:
    """By name, dequantized."""
    found = {}
    for tensor in read.tensors:
        shape = tuple(int(n) for n in reversed(tensor.shape))
        kind = tensor.tensor_type.name.lower()
        if kind not in ("f32", "f16"):
            found[tensor.name] = dequantized_by_gguf(kind, np.asarray(tensor.data)).reshape(shape)
        else:
            found[tensor.name] = np.asarray(tensor.data, np.float32).reshape(shape)
    return found


def types(read: gguf.GGUFReader) -> dict[str, str]:
    return {tensor.name: tensor.tensor_type.name.lower() for tensor in read.tensors}


@pytest.mark.parametrize("name", ["llama-multi-head", "qwen2"])
def test_transformers_computes_the_same_from_the_file(tmp_path: Path, name: str) -> None:
    from transformers import AutoModelForCausalLM

    folder = with_tokenizer(save_decoder(tmp_path / "float", name))
    done = written(tmp_path, folder, "gguf:f32")
    read = AutoModelForCausalLM.from_pretrained(done.directory, gguf_file="tiny-F32.gguf", dtype=torch.float32)
    original = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = torch.arange(3, 40)[None]
    with torch.inference_mode():
        torch.testing.assert_close(read(ids).logits, original(ids).logits, rtol=1e-5, atol=1e-5)


def test_llamas_rows_rotary_factors_and_norms(tmp_path: Path) -> None:
    """Against the definitions: rows of pairs beside each other; frequencies of Llama 3.1; Gemma's 1 + weight."""
    folder = with_tokenizer(save_decoder(tmp_path / "llama", "llama3-rope"))
    read, state = tensors(reader(written(tmp_path, folder, "gguf:f32"))), load_file(folder / "model.safetensors")
    for letter, heads in (("q", 4), ("k", 2)):
        rows = state[f"model.layers.1.self_attn.{letter}_proj.weight"].numpy().reshape(heads, 2, 16, -1)
        paired = read[f"blk.1.attn_{letter}.weight"].reshape(heads, 16, 2, -1)
        np.testing.assert_array_equal(paired[:, :, 0], rows[:, 0])
        np.testing.assert_array_equal(paired[:, :, 1], rows[:, 1])
    from transformers import AutoConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](AutoConfig.from_pretrained(folder), "cpu")
    plain = 500000.0 ** -(torch.arange(0, 32, 2) / 32)
    np.testing.assert_allclose(read["rope_freqs.weight"], (plain / scaled).numpy(), rtol=1e-5)


def test_minicpms_scales(tmp_path: Path) -> None:
    folder = with_tokenizer(save_minicpm(tmp_path / "minicpm"))
    fields = reader(written(tmp_path, folder, "gguf:f32")).fields
    got = {key: fields[f"minicpm.{key}"].contents() for key in ("embedding_scale", "residual_scale", "logit_scale")}
    assert got == pytest.approx({"embedding_scale": 12, "residual_scale": 1.4 / 2**0.5, "logit_scale": 64 / 16})


def test_the_mixture_is_llama_cpps(tmp_path: Path) -> None:
    """Of 16 layers: the first and last two, and every third between them, have more bits."""
    folder = with_tokenizer(deep_llama(tmp_path / "float", hidden=256, inner=512))
    done = written(tmp_path, folder, "gguf:q4_k_m")
    kinds = types(reader(done))
    more = {0, 1, 14, 15, 4, 7, 10, 13}
    for layer in range(16):
        expected = "q6_k" if layer in more else "q4_k"
        assert kinds[f"blk.{layer}.attn_v.weight"] == kinds[f"blk.{layer}.ffn_down.weight"] == expected
        assert kinds[f"blk.{layer}.attn_q.weight"] == kinds[f"blk.{layer}.ffn_up.weight"] == "q4_k"
        assert kinds[f"blk.{layer}.attn_norm.weight"] == "f32"
    assert kinds["output.weight"] == "q6_k" and kinds["token_embd.weight"] == "q4_k"
    read, state = tensors(reader(done)), load_file(folder / "model.safetensors")
    for name, published in (("blk.3.ffn_up", "model.layers.3.mlp.up_proj"), ("output", "lm_head")):
        original = state[f"{published}.weight"].numpy()
        relative = np.square(read[f"{name}.weight"] - original).sum() / np.square(original).sum()
        assert 0 < relative < 0.01
    planned = {name: plan.bytes_after for name, plan in done.plans.items()}
    assert sum(planned.values()) == sum(int(tensor.n_bytes) for tensor in reader(done).tensors)


@pytest.mark.parametrize(
    ("variant", "matrix", "head", "embedding"),
    [("q4_k_m", "q5_0", "q8_0", "q8_0"), ("iq4_xs", "iq4_nl", "q8_0", "q8_0"), ("q4_0", "q4_0", "q8_0", "q8_0")],
)
def test_columns_that_256_does_not_divide_fall_back_and_say_so(
    tmp_path: Path, variant: str, matrix: str, head: str, embedding: str
) -> None:
    folder = with_tokenizer(save_decoder(tmp_path / "float", "llama-multi-head"))
    done = written(tmp_path, folder, f"gguf:{variant}")
    kinds = types(reader(done))
    assert kinds["blk.0.attn_q.weight"] == matrix and "output.weight" not in kinds
    assert kinds["token_embd.weight"] == embedding == head
    why = done.plans["model.layers.0.self_attn.q_proj.weight"].why
    assert ("do not divide" in why) == (variant != "q4_0")


def test_gptq_goes_into_llama_cpps_mixture_and_rows_keep_their_order(tmp_path: Path) -> None:
    """Queries and keys are written in pairs of rotated rows; what was rounded is what a reader finds, row by row."""
    folder = with_tokenizer(deep_llama(tmp_path / "float", hidden=256, inner=512, layers=4))
    rule = {"algorithm": "gptq", "algorithm_options": {"sweeps": 1}}
    done = written(tmp_path, folder, "gguf:q4_k_m", rule, sequences=6)
    assert done.plans["model.layers.2.mlp.down_proj.weight"].scheme == "q6_k"
    algorithms = {name: plan.algorithm for name, plan in done.plans.items()}
    assert (
        algorithms["model.layers.1.self_attn.q_proj.weight"]
        == "gptq"
        == algorithms["model.layers.2.mlp.down_proj.weight"]
    )
    assert algorithms["model.embed_tokens.weight"] == "ggml" == algorithms["lm_head.weight"]
    heads = json.loads((folder / "config.json").read_text())
    read, state = tensors(reader(done)), load_file(folder / "model.safetensors")
    for name, published, count in (
        ("attn_q", "self_attn.q_proj", heads["num_attention_heads"]), ("attn_k", "self_attn.k_proj", heads["num_key_value_heads"]),
        ("ffn_down", "mlp.down_proj", 0),
    ):  # fmt: skip
        original = state[f"model.layers.1.{published}.weight"].numpy()
        if count:
            original = original.reshape(count, 2, -1, original.shape[1]).swapaxes(1, 2).reshape(original.shape)
        relative = np.square(read[f"blk.1.{name}.weight"] - original).sum(1) / np.square(original).sum(1)
        assert 0 < relative.max() < 0.05, name


def test_a_recipe_chooses_types_by_name(tmp_path: Path) -> None:
    folder = with_tokenizer(save_decoder(tmp_path / "float", "llama"))
    rules = [{"name": "*down_proj*", "scheme": "q8_0"}, {"name": "*o_proj*", "scheme": "float"}]
    kinds = types(reader(written(tmp_path, folder, "gguf:q4_0", *rules)))
    assert kinds["blk.0.ffn_down.weight"] == "q8_0" and kinds["blk.0.attn_output.weight"] == "f16"
    assert kinds["blk.0.ffn_up.weight"] == "q4_0"
    with pytest.raises(UsageError, match="no type for w4b64fp16"):
        written(tmp_path, folder, "gguf:q8_0", {"scheme": "w4b64fp16"})


def test_what_llama_cpp_computes_otherwise_is_refused(tmp_path: Path) -> None:
    for name, key in (("qwen2-sliding", "use_sliding_window"), ("qwen3_5", "no GGUF is written")):
        folder = with_tokenizer(save_decoder(tmp_path / name, name))
        with pytest.raises(InputError, match=re.escape(key)):
            written(tmp_path / f"{name}-out", folder, "gguf:f32")


def test_numbers_too_large_for_float16_are_refused(tmp_path: Path) -> None:
    folder = with_tokenizer(save_decoder(tmp_path / "float", "llama"))
    state = load_file(folder / "model.safetensors")
    state["model.layers.0.mlp.up_proj.weight"][0, 0] = 1e5
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=r"float16 can't.*up_proj|up_proj.*float16 can't"):
        written(tmp_path, folder, "gguf:f16")


def test_minicpm_v_becomes_a_pair(tmp_path: Path) -> None:
    folder = tmp_path / "float"
    synthesize("minicpm-llama3-v-2.5", folder, scale=0.03, layers=2)
    done = written(tmp_path, folder, "gguf:q8_0")
    assert {p.name for p in done.directory.iterdir()} == {"tiny-Q8_0.gguf", "mmproj-tiny-F16.gguf"}
    seeing = reader(done, "mmproj*")
    fields = {key: field.contents() for key, field in seeing.fields.items()}
    assert fields["clip.minicpmv_version"] == 2 and fields["clip.minicpmv_query_num"] == 96
    assert fields["clip.vision.image_size"] == 448 and fields["clip.projector_type"] == "resampler"
    read, state = tensors(seeing), load_file(folder / "model.safetensors")
    width = len(state["resampler.proj"])
    for part, letter in enumerate("qkv"):
        expected = state["resampler.attn.in_proj_weight"][part * width : (part + 1) * width].float().numpy()
        np.testing.assert_allclose(read[f"resampler.attn.{letter}.weight"], expected, rtol=1e-3, atol=1e-7)
    np.testing.assert_allclose(
        read["resampler.proj.weight"], state["resampler.proj"].float().numpy().T, rtol=1e-3, atol=1e-7
    )
    assert read["v.patch_embd.weight"].shape == state["vpm.embeddings.patch_embedding.weight"].shape
    assert types(seeing)["resampler.query"] == "f32" and types(seeing)["v.blk.0.attn_q.weight"] == "f16"
    language = {key: field.contents() for key, field in reader(done).fields.items()}
    tokens, kinds = language["tokenizer.ggml.tokens"], language["tokenizer.ggml.token_type"]
    assert all(kinds[tokens.index(mark)] == gguf.TokenType.CONTROL for mark in ("<image>", "</slice>", "<|eot_id|>"))
    assert "loop.first" in language["tokenizer.chat_template"]


def test_versions_without_a_loader_are_refused(tmp_path: Path) -> None:
    synthesize("minicpm-v-2.0", tmp_path / "float", scale=0.06, layers=2)
    source = open_source(tmp_path / "float")
    bundle: ModelBundle = family_of(source).load(source, "tiny", Lengths())
    with pytest.raises(InputError, match=r"no loader for the vision tower of MiniCPM-V 2\.0"):
        GgufFormat().check(source, bundle, "f16")


def deep_llama(folder: Path, *, hidden: int, inner: int, layers: int = 16) -> Path:
    """A Llama of many layers, wide enough for blocks of 256."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers, num_attention_heads=4, num_key_value_heads=4,
        vocab_size=320, max_position_embeddings=128, tie_word_embeddings=False,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def test_a_recipe_packs_the_vision_tower_too(tmp_path: Path) -> None:
    folder = tmp_path / "float"
    synthesize("minicpm-v-2.6", folder, scale=0.03, layers=2)
    done = written(tmp_path, folder, "gguf:f16", {"component": "vision", "scheme": "q8_0"})
    read = gguf.GGUFReader(done.directory / "mmproj-tiny-Q8_0.gguf")
    kinds = types(read)
    assert kinds["v.blk.1.ffn_up.weight"] == "q8_0" and kinds["resampler.kv.weight"] == "f16"
    assert kinds["v.blk.1.attn_q.weight"] == "f16"  # 72 columns
    assert "do not divide its 72 columns" in done.plans["vpm.encoder.layers.1.self_attn.q_proj.weight"].why
    assert read.fields["general.file_type"].contents() == 7 and read.fields["clip.minicpmv_version"].contents() == 3
