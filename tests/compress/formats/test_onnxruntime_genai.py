import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import onnxruntime_genai as genai
import pytest
from decoder_models import save_decoder, save_minicpm
from greedy_reference import greedy, prompt
from numpy.typing import NDArray
from written_formats import written

from pocketport.compress.executors.ort_executor import OrtExecutor
from pocketport.compress.families.language.load import load_language
from pocketport.compress.families.language.runner import LanguageRunner
from pocketport.compress.families.registry import Lengths
from pocketport.compress.formats.onnx_linear import kernel_block
from pocketport.compress.sources.open import open_source
from pocketport.compress.sources.source import Source
from pocketport.errors import InputError, UsageError

NEW = 24


def generated(folder: Path, tokens: Sequence[int], count: int) -> list[int]:
    parameters = genai.GeneratorParams(genai.Model(str(folder)))
    length = len(tokens) + count
    parameters.set_search_options(max_length=length, min_length=length, do_sample=False)
    generator = genai.Generator(genai.Model(str(folder)), parameters)
    generator.append_tokens(np.array([tokens], np.int32))
    found = []
    while not generator.is_done():
        generator.generate_next_token()
        found.append(int(generator.get_next_tokens()[0]))
    return found


def logits(folder: Path, tokens: Sequence[int]) -> NDArray[np.float32]:
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    feeds: dict[str, NDArray[np.generic]] = {}
    for value in session.get_inputs():
        dtype = np.float16 if "float16" in value.type else np.float32
        if value.name.startswith("past"):
            feeds[value.name] = np.zeros((1, value.shape[1], 0, value.shape[3]), dtype)
    feeds |= {"input_ids": np.array([tokens]), "attention_mask": np.ones((1, len(tokens)), np.int64)}
    if "position_ids" in {v.name for v in session.get_inputs()}:
        feeds["position_ids"] = np.arange(len(tokens))[None]
    return np.asarray(session.run(["logits"], feeds)[0][0], np.float32)


@pytest.mark.parametrize(
    "name",
    ["llama", "llama3-rope", "llama-multi-head", "mistral", "qwen2", "qwen3-yarn", "gemma3_text", "smollm3"],
)
def test_it_generates_what_transformers_does(tmp_path: Path, name: str) -> None:
    folder, tokens = save_decoder(tmp_path / "float", name), prompt(40)
    done = written(tmp_path, folder, "onnxruntime-genai:fp32", {"algorithm": "rtn"})
    expected, over_prompt = greedy(folder, done, tokens, NEW)
    np.testing.assert_allclose(logits(done.directory, tokens), over_prompt, atol=2e-5)
    assert generated(done.directory, tokens, NEW) == expected
    assert all(p.quantized for p in done.plans.values() if len(p.shape) == 2)


def test_longrope_changes_its_table_where_the_context_outgrows_it(tmp_path: Path) -> None:
    folder, tokens = save_decoder(tmp_path / "float", "llama-longrope"), prompt(250)
    done = written(tmp_path, folder, "onnxruntime-genai:fp32", {"algorithm": "rtn"})
    for length in (40, 256, 300):
        longer = prompt(length)
        np.testing.assert_allclose(logits(done.directory, longer), greedy(folder, done, longer, 1)[1], atol=5e-5)
    assert generated(done.directory, tokens, NEW) == greedy(folder, done, tokens, NEW)[0]


def test_minicpm_scales_embeddings_residuals_and_logits(tmp_path: Path) -> None:
    folder, tokens = save_minicpm(tmp_path / "float"), prompt(12)
    done = written(tmp_path, folder, "onnxruntime-genai:fp32", {"algorithm": "rtn"})
    source = open_source(folder)
    tensors = dict(source.tensors)
    tensors |= {name: ir.Tensor(done.weight(name).dequantized(), name=name) for name in done.weights}
    changed = Source(source.path, source.config, tensors)
    bundle = load_language(changed, "tiny", Lengths(prompt=16, cache=64))
    runner = LanguageRunner({c.name: OrtExecutor(c.graph) for c in bundle}, {**bundle.config, "stop_tokens": []})
    assert generated(done.directory, tokens, NEW) == runner.generate(tokens, NEW)


@pytest.mark.parametrize(("scheme", "blocks"), [("w4b64fp16", 1), ("w8b32fp16", 2), ("w4cfp16", 1)])
def test_layers_hold_our_integers(tmp_path: Path, scheme: str, blocks: int) -> None:
    folder = save_decoder(tmp_path / "float", "llama")
    wanted = {"scheme": scheme, "algorithm": "rtn", "fallback": ["w4b32fp16"]}
    done = written(tmp_path, folder, "onnxruntime-genai:fp32", wanted)
    graph = ir.load(done.directory / "model.onnx").graph
    (node,) = (n for n in graph if n.name == "model.layers.0.self_attn.o_proj")
    weight = done.weight("model.layers.0.self_attn.o_proj.weight")
    assert node.op_type == "MatMulNBits" and node.attributes.get_int("bits") == weight.bits
    packed, scales = (np.asarray(v.const_value.numpy()) for v in node.inputs[1:3])  # type: ignore[union-attr]
    assert scales.shape == (64, blocks)
    if weight.bits == 8:
        np.testing.assert_array_equal(packed.reshape(weight.shape), weight.integers)
    else:
        np.testing.assert_array_equal(packed.reshape(64, -1) & 15, weight.integers[:, ::2])
        np.testing.assert_array_equal(packed.reshape(64, -1) >> 4, weight.integers[:, 1::2])
    np.testing.assert_array_equal(np.repeat(scales, 64 // blocks, 1), np.repeat(weight.scale, weight.block, 1))


def test_activations_in_int8_and_float16(tmp_path: Path) -> None:
    folder, tokens = save_decoder(tmp_path / "float", "qwen3"), prompt(40)
    worst = {}
    for variant in ("int8", "fp16"):
        done = written(tmp_path, folder, f"onnxruntime-genai:{variant}", {"algorithm": "rtn"})
        expected = greedy(folder, done, tokens, 1)[1]
        worst[variant] = float(np.abs(logits(done.directory, tokens) - expected).max() / np.abs(expected).max())
        assert len(generated(done.directory, tokens, 4)) == 4
    assert 1e-5 < worst["fp16"] < 2e-3 < worst["int8"] < 0.1


def test_a_tied_projection_shares_the_tables_integers(tmp_path: Path) -> None:
    done = written(tmp_path, save_decoder(tmp_path / "float", "llama-multi-head"), "onnxruntime-genai")
    initializers = ir.load(done.directory / "model.onnx").graph.initializers
    assert [name for name in initializers if name.endswith("_q8")] == ["model.embed_tokens.weight_q8"]


def test_the_configuration_is_of_the_model(tmp_path: Path) -> None:
    folder = save_decoder(tmp_path / "float", "qwen3")
    model = json.loads((written(tmp_path, folder, "onnxruntime-genai").directory / "genai_config.json").read_text())[
        "model"
    ]
    assert (model["type"], model["context_length"], model["vocab_size"], model["eos_token_id"]) == (
        "qwen3",
        512,
        160,
        2,
    )
    assert (model["decoder"]["head_size"], model["decoder"]["num_key_value_heads"]) == (32, 2)


def test_layers_without_softmax_attention_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="linear_attention"):
        written(tmp_path, save_decoder(tmp_path / "float", "qwen3_5"), "onnxruntime-genai")


def test_schemes_that_the_kernels_lack_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="4 or 8 bits"):
        written(tmp_path, save_decoder(tmp_path / "float", "llama"), "onnxruntime-genai", {"scheme": "w3b32fp16"})


@pytest.mark.parametrize(("block", "expected"), [(32, 32), (512, 256), (96, 32), (576, 64), (40, 0), (8, 0)])
def test_blocks_that_the_kernels_take(block: int, expected: int) -> None:
    assert kernel_block(block) == expected
