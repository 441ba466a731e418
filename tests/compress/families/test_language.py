"""Loading language models, running them, and what the parity gate sees."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from decoder_models import SIZES, save_decoder, save_minicpm, shaken
from safetensors.torch import load_file, save_file

from pocketport.calibration.metrics import sqnr_db
from pocketport.compress.bundle import ModelBundle
from pocketport.compress.executors.ort_executor import OrtExecutor
from pocketport.compress.families.decoder.config import DecoderConfig
from pocketport.compress.families.decoder.published import cut_out, telling_layers
from pocketport.compress.families.language import parity
from pocketport.compress.families.language.load import load_language
from pocketport.compress.families.language.runner import LanguageRunner, chain_feeds
from pocketport.compress.families.registry import Lengths
from pocketport.compress.families.transformers_reference import transformers_model
from pocketport.compress.graph import static_shape
from pocketport.compress.sources.open import open_source
from pocketport.compress.sources.source import Source
from pocketport.errors import InputError, UsageError

transformers = pytest.importorskip("transformers")

LENGTHS = Lengths(prompt=40, cache=56)
PROMPT = np.random.default_rng(3).integers(3, 160, 23).tolist()


def load(folder: Path, lengths: Lengths = LENGTHS) -> tuple[ModelBundle, Source]:
    source = open_source(folder)
    return load_language(source, "tiny", lengths), source


def executors(bundle: ModelBundle) -> dict[str, OrtExecutor]:
    return {component.name: OrtExecutor(component.graph) for component in bundle}


def worst(bundle: ModelBundle, source: Source) -> float:
    """The lowest SQNR (dB) of the gate's float pairs."""
    pairs = list(parity.compare(bundle, source))
    return min(sqnr_db(expected, found) for _, tensor, expected, found in pairs if tensor != "token_ids")


def rewrite(folder: Path, change: dict[str, Any]) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))


def test_the_components_are_as_the_architecture_says(tmp_path: Path) -> None:
    bundle, _ = load(save_decoder(tmp_path, "qwen3"))
    assert list(bundle.components) == ["embed", "prefill", "decode"]
    past = {f"past_{kind}_{i}": (1, 2, 56, 32) for i in range(2) for kind in ("key", "value")}
    expected = {
        "embed": {"input_ids": (40,)},
        "prefill": {"inputs_embeds": (40, 64), "rope_cos": (40, 32), "rope_sin": (40, 32), "attention_bias": (1, 40, 40)},
        "decode": {"inputs_embeds": (1, 64), "rope_cos": (1, 32), "rope_sin": (1, 32), "attention_bias": (1, 1, 57), **past},
    }  # fmt: skip
    weights = load_file(tmp_path / "model.safetensors")
    for component in bundle:
        graph = component.graph.graph
        assert {v.name: static_shape(v) for v in graph.inputs} == expected[component.name]
        assert all(static_shape(o) is not None and o.dtype is not None for node in graph for o in node.outputs)
        for node in graph:
            if node.op_type == "Gemm":
                assert node.attributes["transB"].as_int() == 1
                weight = node.inputs[1]
                assert weight is not None and weight.name in weights and weight.const_value is not None
                np.testing.assert_array_equal(weight.const_value.numpy(), weights[weight.name].numpy())
    assert bundle.shared[0] == ["prefill/present_key_0", "decode/past_key_0", "decode/present_key_0"]
    assert bundle.config["stop_tokens"] == [2]
    assert json.loads(json.dumps(bundle.config)) == bundle.config


def test_sliding_layers_have_inputs_of_their_own(tmp_path: Path) -> None:
    bundle, _ = load(save_decoder(tmp_path, "gemma3_text"))
    inputs = {str(v.name): static_shape(v) for v in bundle["prefill"].graph.graph.inputs}
    assert inputs == {
        "inputs_embeds": (40, 64), "rope_cos": (40, 32), "rope_sin": (40, 32), "sliding_rope_cos": (40, 32),
        "sliding_rope_sin": (40, 32), "attention_bias": (1, 40, 40), "sliding_attention_bias": (1, 40, 40),
    }  # fmt: skip
    weights = load_file(tmp_path / "model.safetensors")
    gains = {n: v for n, v in bundle["prefill"].graph.graph.initializers.items() if n.endswith("_plus_one")}
    assert len(gains) == 3 * 6 + 1
    for name, value in gains.items():
        assert value.const_value is not None
        np.testing.assert_array_equal(value.const_value.numpy(), 1 + weights[name.removesuffix("_plus_one")].numpy())


@pytest.mark.parametrize("name", ["llama", "qwen2", "gemma3_text", "smollm3"])
def test_the_runner_says_what_transformers_says(tmp_path: Path, name: str) -> None:
    bundle, source = load(save_decoder(tmp_path, name))
    runner = LanguageRunner(executors(bundle), {**bundle.config, "stop_tokens": []})
    model: Any = transformers_model(source, "AutoModelForCausalLM")
    with torch.inference_mode():
        expected = model.generate(
            input_ids=torch.tensor([PROMPT]), attention_mask=torch.ones(1, len(PROMPT), dtype=torch.long), do_sample=False,
            max_new_tokens=17, eos_token_id=None, pad_token_id=0,
        )[0, len(PROMPT) :].tolist()  # fmt: skip
        logits = model(input_ids=torch.tensor([PROMPT + expected])).logits[0, len(PROMPT) - 1 : -1]
    assert runner.max_new_tokens == 17
    assert runner.generate(PROMPT) == expected
    stopping = LanguageRunner(runner.executors, {**bundle.config, "stop_tokens": [expected[4]]})
    assert stopping.generate(PROMPT) == expected[: expected.index(expected[4]) + 1]
    assert sqnr_db(logits.numpy(), runner.logits(PROMPT, expected)) > 90
    loss = torch.nn.functional.cross_entropy(logits, torch.tensor(expected)).item()
    assert runner.perplexity(PROMPT, expected) == pytest.approx(math.exp(loss), rel=1e-4)


def test_limits(tmp_path: Path) -> None:
    folder = save_decoder(tmp_path, "llama")
    bundle, _ = load(folder)
    runner = LanguageRunner(executors(bundle), bundle.config)
    for count in (0, 18):
        with pytest.raises(UsageError, match="do not fit"):
            runner.generate(PROMPT, count)
    with pytest.raises(InputError, match="41 tokens"):
        runner.generate([5] * 41)
    for lengths, expected in (
        (Lengths(), (256, 512)), (Lengths(prompt=16), (16, 512)), (Lengths(prompt=16, cache=20), (16, 20)), (Lengths(cache=100), (50, 100)),
    ):  # fmt: skip
        config = load(folder, lengths)[0].config
        assert (config["prompt"], config["cache"]) == expected
    for lengths in (Lengths(cache=513), Lengths(prompt=30, cache=30), Lengths(prompt=-1), Lengths(prompt=512)):
        with pytest.raises(UsageError, match="context of 512"):
            load(folder, lengths)


def test_chain_feeds_fit_every_graph(tmp_path: Path) -> None:
    bundle, _ = load(save_decoder(tmp_path, "qwen2-sliding"))
    running = executors(bundle)
    found = list(chain_feeds(running, bundle.config, [(PROMPT, [5, 6, 7, 8, 9, 10]), ([4], [9])], decode_steps=2))
    assert [component for component, _ in found] == [
        "embed",
        "prefill",
        "embed",
        "decode",
        "embed",
        "decode",
        "embed",
        "prefill",
    ]
    for component, feeds in found:
        assert {name: array.shape for name, array in feeds.items()} == running[component].inputs
        running[component].run(feeds)
    held = [int(feeds["past_key_1"].any(axis=(0, 1, 3)).sum()) for component, feeds in found if component == "decode"]
    assert held == [23, 27], "the first and the last step, as the cache was then"


def test_sharded_half_precision_checkpoints(tmp_path: Path) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(save_decoder(tmp_path / "whole", "qwen3")).to(
        torch.bfloat16
    )
    model.save_pretrained(tmp_path / "shards", max_shard_size="100KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    assert worst(*load(tmp_path / "shards")) > 90


def composite(folder: Path) -> Path:
    """A Gemma 3 that sees, as published: its language model under ``language_model``."""
    text = {**SIZES, "head_dim": 32, "num_hidden_layers": 3, "sliding_window": 16,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}  # fmt: skip
    vision = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    config = transformers.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=1)
    torch.manual_seed(0)
    shaken(transformers.Gemma3ForConditionalGeneration(config)).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("newer", [False, True])
def test_the_language_model_of_a_gemma3_that_sees(tmp_path: Path, newer: bool) -> None:
    folder = composite(tmp_path)
    if newer:  # the names that transformers 4.52 to 4.57 wrote
        path = folder / "model.safetensors"
        weights = load_file(path)
        names = {n: "model." + n.replace("language_model.model", "language_model") for n in weights}
        save_file({names[n]: w for n, w in weights.items()}, path)
    bundle, source = load(folder)
    assert bundle.config["left_out"] == ["vision"]
    assert worst(bundle, source) > 90


@pytest.mark.parametrize(
    ("name", "change"),
    [("llama", {"rms_norm_eps": 1e-3}), ("llama3-rope", {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}),
     ("mistral", {"sliding_window": 25}), ("qwen2-sliding", {"layer_types": ["full_attention"] * 2}),
     ("gemma3_text", {"query_pre_attn_scalar": 25}), ("gemma3_text", {"hidden_activation": "silu"}),
     ("gemma3_text", {"layer_types": ["full_attention", "sliding_attention", "sliding_attention"]}),
     ("smollm3", {"no_rope_layers": [1, 1, 1, 1]}), ("minicpm", {"scale_depth": 1.3}), ("minicpm", {"scale_emb": 11}),
     ("minicpm", {"dim_model_base": 17})],
)  # fmt: skip
def test_the_gate_sees_graphs_of_another_configuration(tmp_path: Path, name: str, change: dict[str, Any]) -> None:
    folder = save_minicpm(tmp_path) if name == "minicpm" else save_decoder(tmp_path, name)
    source = open_source(folder)
    rewrite(folder, change)
    altered, _ = load(folder)
    assert worst(altered, source) < 60


@pytest.mark.parametrize(
    "tensor", ["model.layers.1.self_attn.k_norm.weight", "model.layers.0.post_attention_layernorm.weight", "model.norm.weight",
               "model.layers.1.mlp.up_proj.weight"],
)  # fmt: skip
def test_the_gate_sees_a_wrong_weight(tmp_path: Path, tensor: str) -> None:
    bundle, source = load(save_decoder(tmp_path, "qwen3"))
    wrong = ir.tensor(source.tensors[tensor].numpy() * np.float32(1.05), name=tensor)
    assert worst(bundle, replace(source, tensors={**source.tensors, tensor: wrong})) < 60


@pytest.mark.parametrize("name", ["llama", "gemma3_text", "smollm3", "minicpm"])
def test_large_models_are_compared_in_part(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_minicpm(tmp_path, num_hidden_layers=5) if name == "minicpm" else save_decoder(tmp_path, name)
    bundle, source = load(folder)
    monkeypatch.setattr(parity, "SMALL", 0)
    monkeypatch.setattr(parity, "WORDS", 50)
    assert worst(bundle, source) > 90
    config = DecoderConfig.from_hf(source.config)
    layers = telling_layers(config)
    assert layers == {"llama": (0, 1), "gemma3_text": (0, 1), "smollm3": (0, 3), "minicpm": (0, 4)}[name]
    small = cut_out(source, "model", "lm_head", layers, 50)
    cut = DecoderConfig.from_hf(small.config)
    assert cut.residual_scale == pytest.approx(config.residual_scale)
    assert (cut.num_hidden_layers, cut.vocab_size) == (2, 50)
    kept, given = (
        small.tensors["model.layers.1.mlp.up_proj.weight"],
        source.tensors[f"model.layers.{layers[1]}.mlp.up_proj.weight"],
    )
    np.testing.assert_array_equal(kept.numpy(), given.numpy())


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    folder = save_decoder(tmp_path, "llama")
    path = folder / "model.safetensors"
    weights = load_file(path)
    for change, message in (
        ({"lm_head.weight": None}, "lm_head"), ({"model.layers.1.mlp.up_proj.weight": None}, r"layers\.1\.mlp\.up_proj"),
        ({"model.layers.2.mlp.up_proj.weight": torch.zeros(2, 2)}, r"layers\.2\.mlp"), ({"model.norm.weight": torch.zeros(3)}, r"model\.norm"),
        ({"model.embed_tokens.weight": None}, "embedding table"),
    ):  # fmt: skip
        save_file({n: w for n, w in {**weights, **change}.items() if w is not None}, path)
        with pytest.raises(InputError, match=message):
            load(folder)


def test_the_reference_is_strict_about_names(tmp_path: Path) -> None:
    source = open_source(save_decoder(tmp_path, "llama"))
    norm = source.tensors["model.norm.weight"]
    for tensors, message in (
        ({n: t for n, t in source.tensors.items() if n != "model.norm.weight"}, r"misses model\.norm"),
        ({**source.tensors, "model.extra": norm}, r"no place for model\.extra"),
        ({**source.tensors, "model.norm.weight": source.tensors["lm_head.weight"]}, r"shape|size"),
    ):
        with pytest.raises(InputError, match=message):
            transformers_model(Source(tmp_path, source.config, tensors), "AutoModelForCausalLM")
    tolerant = Source(tmp_path, source.config, {**source.tensors, "model.layers.0.self_attn.rotary_emb.inv_freq": norm})
    assert not transformers_model(tolerant, "AutoModelForCausalLM").training
    with pytest.raises(UsageError, match="minicpm"):
        transformers_model(open_source(save_minicpm(tmp_path / "minicpm")), "AutoModelForCausalLM")
