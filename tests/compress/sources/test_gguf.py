"""GGUF files as an input, against transformers' own reading of them and against the checkpoints that they came from."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from decoder_models import save_decoder, save_minicpm, shaken
from gguf_files import llama, write_llama
from minicpmv_series import SERIES
from written_formats import written

from pocketport.compress.executors.ort_executor import OrtExecutor
from pocketport.compress.families.decoder.config import DecoderConfig
from pocketport.compress.families.minicpmv.config import MiniCPMVConfig
from pocketport.compress.families.registry import Lengths, family_of
from pocketport.compress.ingest import ingest
from pocketport.compress.parity import check_parity
from pocketport.compress.schemes import Scheme
from pocketport.compress.sources.gguf_tensors import BlockTensor
from pocketport.compress.sources.open import open_source
from pocketport.compress.sources.scan import check_weights
from pocketport.compress.synthesis.preset import load_preset, scaled
from pocketport.compress.synthesis.write import write_preset
from pocketport.errors import InputError, UsageError

MIXED = {
    "embed_tokens.weight": "q8_0", "lm_head.weight": "q6_k", "q_proj.weight": "q4_0", "k_proj.weight": "q4_k",
    "v_proj.weight": "q5_k", "o_proj.weight": "q5_0", "gate_proj.weight": "q4_1", "up_proj.weight": "iq4_xs",
    "0.mlp.down_proj.weight": "f16", "1.mlp.down_proj.weight": "q5_1",
}  # fmt: skip


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POCKETPORT_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llama file with a tensor of every common type."""
    return write_llama(tmp_path_factory.mktemp("mixed") / "mixed.gguf", llama(), MIXED)


def test_every_tensor_is_what_transformers_reads(mixed: Path) -> None:
    from transformers import AutoModelForCausalLM

    source = open_source(mixed)
    expected = AutoModelForCausalLM.from_pretrained(
        mixed.parent, gguf_file=mixed.name, dtype=torch.float32
    ).state_dict()
    assert source.tensors.keys() == expected.keys()
    for name, tensor in source.tensors.items():
        np.testing.assert_array_equal(tensor.numpy(), expected[name].numpy(), err_msg=name)


def test_the_graphs_compute_what_transformers_computes(mixed: Path) -> None:
    bundle = ingest(mixed, lengths=Lengths(prompt=16, cache=32))
    assert bundle.name == "mixed"
    assert min(figure.sqnr_db for figure in check_parity(bundle, mixed).figures) > 80


def test_integers_are_taken_over(mixed: Path, tmp_path: Path) -> None:
    for name, tensor in open_source(mixed).tensors.items():
        kind = next((kind for end, kind in MIXED.items() if name.endswith(end)), "f32")
        bits = {"q4_0": 4, "q5_0": 5, "q8_0": 8}.get(kind)
        if not isinstance(tensor, BlockTensor):
            assert kind in ("f32", "f16")
        elif bits is None:
            assert not tensor.fits(Scheme.parse("w4b32fp16"), True) and tensor.scheme == ""
            with pytest.raises(InputError, match=f"its type {kind} is no matrix of integers"):
                tensor.quantized()
        else:
            weight = tensor.quantized()
            assert (weight.bits, weight.block, weight.symmetric) == (bits, 32, True)
            np.testing.assert_array_equal(weight.dequantized(), tensor.numpy())
            assert tensor.fits(Scheme.parse(f"w{bits}b32fp16"), True) and tensor.scheme == f"w{bits}b32fp16"
            assert not tensor.fits(Scheme.parse(f"w{bits}b32fp16"), False)
            assert not tensor.fits(Scheme.parse("w4b64fp16"), True)


def test_q4_0_goes_into_another_format_as_it_is(tmp_path: Path) -> None:
    path = write_llama(tmp_path / "m.gguf", llama(), {"_proj.weight": "q4_0"}, tokens=160)
    done = written(tmp_path, path, "compressed-tensors")
    name, source = "model.layers.1.self_attn.q_proj.weight", open_source(path)
    assert done.plans[name].algorithm == "stored" and done.plans[name].scheme == "w4b32fp16"
    tensor = source.tensors[name]
    assert isinstance(tensor, BlockTensor)
    np.testing.assert_array_equal(done.weight(name).integers, tensor.quantized().integers)
    np.testing.assert_array_equal(done.weight(name).dequantized(), tensor.numpy())


DECODERS = ["llama", "llama-multi-head", "llama3-rope", "llama-linear-rope", "llama-longrope", "mistral-full", "qwen2",
            "qwen3", "qwen3-yarn", "smollm3"]  # fmt: skip


@pytest.mark.parametrize("name", [*DECODERS, "minicpm"])
def test_a_decoder_comes_back_from_the_file_that_we_write(name: str, tmp_path: Path) -> None:
    folder = save_minicpm(tmp_path / "m") if name == "minicpm" else save_decoder(tmp_path / "m", name)
    tokenizer_beside(folder)
    done = written(tmp_path, folder, "gguf:f32")
    original, read = open_source(folder), open_source(next(done.directory.glob("*.gguf")))
    before, after = DecoderConfig.from_hf(original.config), DecoderConfig.from_hf(read.config)
    assert replace(before, rope=after.rope) == after
    context = before.max_position_embeddings
    for positions in (context // 4, context):
        expected = before.rope.frequencies(positions)
        np.testing.assert_allclose(after.rope.frequencies(positions), expected, rtol=1e-6)
    assert after.rope.amplitude == pytest.approx(before.rope.amplitude, rel=1e-6)
    tensors = {n: t for n, t in original.tensors.items() if not (before.tie_word_embeddings and n == "lm_head.weight")}
    assert read.tensors.keys() == tensors.keys()
    for tensor_name, tensor in tensors.items():
        np.testing.assert_array_equal(read.tensors[tensor_name].numpy(), tensor.numpy(), err_msg=tensor_name)


def tokenizer_beside(folder: Path) -> None:
    """Bytes alone would not fit into 160 words: a tokenizer of single letters."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.BPE(vocab={chr(0x100 + i): i for i in range(160)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.save(str(folder / "tokenizer.json"))


@pytest.mark.parametrize("version", ["2.5", "2.6", "4.0", "4.5"])
def test_a_minicpmv_comes_back_from_its_pair_of_files(version: str, tmp_path: Path) -> None:
    preset = scaled(load_preset(SERIES[version]), 0.04, None)
    folder = tmp_path / "m"
    write_preset(preset, folder)
    done = written(tmp_path, folder, "gguf:f32")
    original, read = open_source(folder), open_source(done.directory)
    before, after = MiniCPMVConfig.of(original), MiniCPMVConfig.of(read)
    for key in ("query_num", "use_image_id", "slice_mode", "slice_config", "vision_config", "drop_vision_last_layer"):
        assert getattr(after, key) == getattr(before, key), key
    assert float(after.version) == float(before.version)
    computed = {n for n in original.tensors if n.endswith(("pos_embed", "position_ids", "inv_freq"))}
    tied = {"llm.lm_head.weight"} if before.tie_word_embeddings else set()
    assert read.tensors.keys() == original.tensors.keys() - computed - tied
    for name, tensor in read.tensors.items():
        np.testing.assert_array_equal(tensor.numpy(), original.tensors[name].numpy(), err_msg=name)
    assert family_of(read).load(read, "m", Lengths(prompt=1024, cache=1152)).components.keys() == {
        "vision", "connector", "embed", "prefill", "decode",
    }  # fmt: skip


def changed_file(path: Path, target: Path, *, metadata: dict[str, Any] | None = None, names: dict[str, str] | None = None) -> Path:  # fmt: skip
    """A copy with other metadata (None removes a key) and names of tensors."""
    reader, changes = gguf.GGUFReader(path), metadata or {}
    writer = gguf.GGUFWriter(target, str(changes.pop("general.architecture", "llama")))
    for key, field in reader.fields.items():
        if not key.startswith("GGUF.") and key != "general.architecture" and key not in changes:
            sub = field.types[1] if len(field.types) > 1 else None
            writer.add_key_value(key, field.contents(), field.types[0], sub_type=sub)
    for key, value in changes.items():
        if value is not None:
            writer.add_key_value(key, value, gguf.GGUFValueType.get_type(value))
    for tensor in reader.tensors:
        name = (names or {}).get(tensor.name, tensor.name)
        writer.add_tensor(name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


REFUSED: dict[str, tuple[dict[str, Any], dict[str, str], str]] = {
    "an unknown architecture": ({"general.architecture": "mamba"}, {}, "the architecture 'mamba' is not known"),
    "a projector alone": ({"general.architecture": "clip"}, {}, "0 language models and 1 projectors"),
    "a part of several": ({"split.count": 3}, {}, "one part of several"),
    "no heads": ({"llama.attention.head_count": None}, {}, "attention.head_count: it is missing"),
    "heads of another type": ({"llama.attention.head_count": "many"}, {}, "not one positive integer"),
    "no epsilon": ({"llama.attention.layer_norm_rms_epsilon": None}, {}, "rms_epsilon: it is missing"),
    "an epsilon that is no number": ({"llama.attention.layer_norm_rms_epsilon": float("nan")}, {}, "not a float"),
    "heads that do not divide": ({"llama.attention.head_count": 7}, {}, "are not 7 heads of an even width"),
    "experts": ({"llama.expert_count": 8}, {}, "mixtures of experts"),
    "an unknown scaling": ({"llama.rope.scaling.type": "spiral"}, {}, "'spiral' is not known"),
    "longrope without factors": ({"llama.rope.scaling.type": "longrope"}, {}, "factors_long and _short are missing"),
    "a tensor of another kind": ({}, {"blk.0.attn_q.weight": "blk.0.attn_qkv.weight"}, "has no such tensor"),
    "no embedding": ({}, {"token_embd.weight": "output_norm.bias"}, "tensor token_embd.weight: it has no such matrix"),
    "too many layers": ({"llama.block_count": 100000}, {}, "it is over 4096"),
    "fewer layers than tensors": ({"llama.block_count": 1}, {}, "the graphs have no place for it"),
    "a missing tensor": ({"llama.block_count": 3}, {}, "model.layers.2"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_can_not_be_a_model_is_refused(mixed: Path, tmp_path: Path, case: str) -> None:
    metadata, names, why = REFUSED[case]
    path = changed_file(mixed, tmp_path / "m.gguf", metadata=dict(metadata), names=names)
    with pytest.raises(InputError) as caught:
        ingest(path)
    assert why in str(caught.value)


def test_a_scale_that_is_nan_is_found(mixed: Path, tmp_path: Path) -> None:
    place = next(t for t in gguf.GGUFReader(mixed).tensors if t.name == "blk.1.attn_k.weight")
    content = bytearray(mixed.read_bytes())
    content[place.data_offset + 144 * 3 + 2 : place.data_offset + 144 * 3 + 4] = b"\x00\x7e"
    (tmp_path / "m.gguf").write_bytes(content)
    check_weights(open_source(mixed))
    with pytest.raises(InputError, match=r"tensor blk\.1\.attn_k\.weight: a scale of it is NaN or infinite"):
        check_weights(open_source(tmp_path / "m.gguf"))


def test_folders_that_are_not_clear(mixed: Path, tmp_path: Path) -> None:
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(mixed.read_bytes())
    with pytest.raises(InputError, match="2 language models and 0 projectors"):
        open_source(tmp_path)
    with pytest.raises(UsageError, match="no such model"):
        open_source(tmp_path / "c.gguf")
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "m.gguf").symlink_to(mixed)
    with pytest.raises(InputError, match="a symbolic link out of the model's folder"):
        open_source(tmp_path / "linked")


def test_llama_3_positions_are_recognized(mixed: Path, tmp_path: Path) -> None:
    """By the divisors that llama.cpp's converter writes for Llama 3.1."""
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaling = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
               "original_max_position_embeddings": 8192}  # fmt: skip
    config = LlamaConfig(
        hidden_size=256, num_attention_heads=4, max_position_embeddings=131072, rope_parameters=scaling
    )
    scaled_frequencies = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))[0].numpy()
    divisors = (500000.0 ** -(np.arange(0, 64, 2) / 64) / scaled_frequencies).astype(np.float32)
    path = changed_file(mixed, tmp_path / "m.gguf", metadata={"llama.rope.freq_base": 500000.0})
    writer = gguf.GGUFWriter(tmp_path / "n.gguf", "llama")
    for key, field in gguf.GGUFReader(path).fields.items():
        if not key.startswith("GGUF.") and key != "general.architecture":
            writer.add_key_value(key, field.contents(), field.types[0])
    for tensor in gguf.GGUFReader(path).tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.add_tensor("rope_freqs.weight", divisors)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = open_source(tmp_path / "n.gguf").config["rope_scaling"]
    assert found == {k: v for k, v in scaling.items() if k != "rope_theta"}


def test_a_bert(tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    sizes = {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": 90,
    }
    model = shaken(BertModel(BertConfig(**sizes, max_position_embeddings=48)))
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "bert")
    writer.add_block_count(2)
    writer.add_context_length(48)
    writer.add_embedding_length(64)
    writer.add_feed_forward_length(96)
    writer.add_head_count(4)
    writer.add_layer_norm_eps(1e-12)
    writer.add_causal_attention(False)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.BERT, 2)
    for name, tensor in model.state_dict().items():
        if not name.startswith("pooler."):
            writer.add_tensor(names.get_name(name, try_suffixes=(".weight", ".bias")), tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    bundle = ingest(tmp_path / "m.gguf", lengths=Lengths(prompt=16))
    ids = torch.arange(3, 19)[None]
    with torch.inference_mode():
        expected = model.eval()(ids).last_hidden_state[0].numpy()
    feeds = {"input_ids": ids[0].numpy().astype(np.int32), "attention_mask": np.ones(16, np.float32)}
    found = OrtExecutor(bundle["main"].graph).run(feeds)["last_hidden_state"]
    np.testing.assert_allclose(found, expected, atol=2e-5)
