"""Loading Qwen-VL checkpoints, their graphs, and what the parity gate sees."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from qwen_vl_models import MODELS, save_qwen_vl
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from pocketport.calibration.metrics import sqnr_db
from pocketport.cli import app
from pocketport.compress.bundle import ModelBundle
from pocketport.compress.executors.ort_executor import OrtExecutor
from pocketport.compress.executors.torch_executor import TorchExecutor
from pocketport.compress.families.qwen_vl import parity
from pocketport.compress.families.qwen_vl.config import QwenVLConfig
from pocketport.compress.families.qwen_vl.load import load_qwen_vl
from pocketport.compress.families.qwen_vl.published import telling_blocks
from pocketport.compress.families.registry import Lengths, family_of
from pocketport.compress.graph import static_shape
from pocketport.compress.parity import check_parity
from pocketport.compress.sources.open import open_source
from pocketport.compress.sources.source import Source
from pocketport.errors import InputError, UsageError

pytest.importorskip("transformers")

LENGTHS = Lengths(patches=256, prompt=96, cache=100)


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A checkpoint of each kind, made once; not to be written to."""
    root = tmp_path_factory.mktemp("qwen_vl")
    return {kind: save_qwen_vl(root / kind, kind) for kind in MODELS}


def load(folder: Path, lengths: Lengths = LENGTHS) -> tuple[ModelBundle, Source]:
    source = open_source(folder)
    return load_qwen_vl(source, "tiny", lengths), source


def with_config(source: Source, change: dict[str, Any]) -> Source:
    """The same tensors with other values in config.json; a mapping changes single keys of a section."""
    config = dict(source.config)
    for key, value in change.items():
        config[key] = {**config[key], **value} if isinstance(value, dict) else value
    return replace(source, config=config)


def worst(bundle: ModelBundle, source: Source) -> float:
    """The lowest SQNR (dB) of the gate's float pairs; −inf where integers differ."""
    found = []
    for _, _, expected, ours in parity.compare(bundle, source):
        if expected.dtype.kind == "i":
            found.append(np.inf if np.array_equal(expected, ours) else -np.inf)
        else:
            found.append(sqnr_db(expected, ours))
    return min(found)


@pytest.mark.parametrize("kind", list(MODELS))
def test_it_computes_what_transformers_computes(saved: dict[str, Path], kind: str) -> None:
    bundle, source = load(saved[kind])
    assert family_of(source).name == "qwen_vl"
    report = check_parity(bundle, saved[kind])
    print(kind, {f"{f.component} {f.tensor}": round(f.sqnr_db, 1) for f in report.figures if "present" not in f.tensor})
    assert min(figure.sqnr_db for figure in report.figures) > 100
    deepstack = range(2 if kind == "qwen3_vl" else 0)
    caches = {f"present_{k}_{i}" for k in ("key", "value") for i in range(3)}
    assert {(figure.component, figure.tensor) for figure in report.figures} == {
        ("vision", "pixel_values"), ("vision", "vision_features"), ("connector", "vision_tokens"),
        *(("vision", f"deepstack_features_{i}") for i in deepstack),
        *(("connector", f"deepstack_tokens_{i}") for i in deepstack), ("prefill", "position_ids"),
        *((component, tensor) for component in ("prefill", "decode") for tensor in ("logits", *caches)),
        ("decode", "token_ids"),
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["qwen2_vl", "qwen2_5_vl"])
def test_the_layout_that_newer_versions_write(saved: dict[str, Path], tmp_path: Path, kind: str) -> None:
    """transformers 4.52 to 4.57: the language model's keys nested, its tensors under ``model.language_model``."""
    config = dict(open_source(saved[kind]).config)
    text = {key: config.pop(key) for key in list(config) if key in MODELS[kind][0] and key in TEXT_KEYS}
    config["text_config"] = {**text, "model_type": f"{kind}_text"}
    weights = load_file(saved[kind] / "model.safetensors")
    old = (("visual.", "model.visual."), ("model.", "model.language_model."))

    def renamed(name: str) -> str:
        return next((new + name.removeprefix(prefix) for prefix, new in old if name.startswith(prefix)), name)

    for file in ("preprocessor_config.json", "generation_config.json", "tokenizer.json"):
        (tmp_path / file).write_bytes((saved[kind] / file).read_bytes())
    save_file({renamed(name): weight for name, weight in weights.items()}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert worst(*load(tmp_path)) > 100


TEXT_KEYS = frozenset({
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "vocab_size",
    "max_position_embeddings", "rms_norm_eps", "rope_theta", "rope_scaling",
})  # fmt: skip


def test_the_components_are_as_the_architecture_says(saved: dict[str, Path]) -> None:
    inputs = {}
    for kind, folder in saved.items():
        bundle, _ = load(folder)
        assert list(bundle.components) == ["vision", "connector", "embed", "prefill", "decode"]
        graphs = {component.name: component.graph.graph for component in bundle}
        inputs[kind] = {name: {v.name: static_shape(v) for v in graph.inputs} for name, graph in graphs.items()}
        weights = load_file(folder / "model.safetensors")
        for node in (node for graph in graphs.values() for node in graph):
            assert all(static_shape(o) is not None and o.dtype is not None for o in node.outputs)
            if node.op_type == "Gemm":
                assert node.attributes["transB"].as_int() == 1
                weight = node.inputs[1]
                assert weight is not None and weight.const_value is not None
                stored = weights[str(weight.name).removesuffix("_flat")].numpy()
                np.testing.assert_array_equal(weight.const_value.numpy().ravel(), stored.ravel())
        assert json.loads(json.dumps(bundle.config)) == bundle.config
    vision = {"rope_cos": (256, 16), "rope_sin": (256, 16), "attention_bias": (1, 1, 256)}
    assert inputs["qwen2_vl"]["vision"] == {"pixel_values": (256, 1176), **vision}
    assert inputs["qwen2_5_vl"]["vision"] == {"pixel_values": (256, 1176), **vision, "window_bias": (1, 256, 256)}
    assert inputs["qwen3_vl"]["vision"] == {"pixel_values": (256, 1536), "position_weights": (256, 81), **vision}
    features = {f"deepstack_features_{i}": (256, 48) for i in range(2)}
    assert inputs["qwen3_vl"]["connector"] == {"vision_features": (256, 48), **features}
    assert inputs["qwen3_vl"]["prefill"] == {
        "inputs_embeds": (96, 64), "rope_cos": (96, 32), "rope_sin": (96, 32), "attention_bias": (1, 96, 96),
        "deepstack_embeds_0": (96, 64), "deepstack_embeds_1": (96, 64),
    }  # fmt: skip
    assert "deepstack_embeds_0" not in inputs["qwen3_vl"]["decode"]


@pytest.mark.parametrize(
    ("kind", "change"),
    [("qwen2_vl", {"rope_scaling": {"type": "mrope", "mrope_section": [4, 2, 2]}}),
     ("qwen2_5_vl", {"vision_config": {"window_size": 56}}), ("qwen2_5_vl", {"vision_config": {"fullatt_block_indexes": [1, 2]}}),
     ("qwen3_vl", {"vision_config": {"deepstack_visual_indexes": [1, 2]}}),
     ("qwen3_vl", {"text_config": {"rope_scaling": {"mrope_interleaved": False, "mrope_section": [6, 5, 5]}}})],
)  # fmt: skip
def test_the_gate_sees_graphs_of_another_configuration(
    saved: dict[str, Path], kind: str, change: dict[str, Any]
) -> None:
    source = open_source(saved[kind])
    altered = load_qwen_vl(with_config(source, change), "altered", LENGTHS)
    assert worst(altered, source) < 60


@pytest.mark.parametrize(
    ("kind", "tensor"),
    [("qwen2_vl", "visual.merger.mlp.0.bias"), ("qwen2_5_vl", "visual.patch_embed.proj.weight"),
     ("qwen3_vl", "model.visual.pos_embed.weight"), ("qwen3_vl", "model.visual.deepstack_merger_list.1.norm.weight")],
)  # fmt: skip
def test_the_gate_sees_a_wrong_weight(saved: dict[str, Path], kind: str, tensor: str) -> None:
    bundle, source = load(saved[kind])
    wrong = ir.tensor(source.tensors[tensor].numpy() * np.float32(1.05), name=tensor)
    assert worst(bundle, replace(source, tensors={**source.tensors, tensor: wrong})) < 60


@pytest.mark.parametrize("kind", ["qwen2_5_vl", "qwen3_vl"])
def test_large_models_are_compared_in_part(saved: dict[str, Path], kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle, source = load(saved[kind])
    monkeypatch.setattr(parity, "SMALL", 0)
    monkeypatch.setattr(parity, "WORDS", 120)
    assert worst(bundle, source) > 100
    assert (
        telling_blocks(QwenVLConfig.from_hf(source.config).vision)
        == {"qwen2_5_vl": (0, 1, 3), "qwen3_vl": (0, 2, 3)}[kind]
    )


@pytest.mark.parametrize("kind", list(MODELS))
def test_the_torch_executor_runs_every_component(saved: dict[str, Path], kind: str) -> None:
    rng = np.random.default_rng(0)
    for component in load(saved[kind])[0]:
        reference = OrtExecutor(component.graph)
        feeds = {
            name: rng.integers(0, 500, shape).astype(np.int32) if name == "input_ids" else rng.normal(size=shape).astype(np.float32)
            for name, shape in reference.inputs.items()
        }  # fmt: skip
        expected, found = reference.run(feeds), TorchExecutor(component.graph).run(feeds)
        for name in reference.outputs:
            assert sqnr_db(expected[name], found[name]) > 90


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [("qwen2_5_vl", {"vision_config": {"depth": 0}}, r"vision_config\.depth"),
     ("qwen2_5_vl", {"vision_config": {"num_heads": 5}}, r"vision_config\.num_heads"),
     ("qwen2_5_vl", {"vision_config": {"window_size": 20}}, r"vision_config\.window_size"),
     ("qwen2_5_vl", {"vision_config": {"fullatt_block_indexes": [4]}}, r"vision_config\.fullatt_block_indexes"),
     ("qwen2_5_vl", {"vision_config": {"hidden_act": "relu"}}, "relu"),
     ("qwen2_5_vl", {"vision_config": {"out_hidden_size": 65}}, r"vision_config\.out_hidden_size"),
     ("qwen3_vl", {"vision_config": {"deepstack_visual_indexes": [2, 1]}}, r"vision_config\.deepstack_visual_indexes"),
     ("qwen3_vl", {"vision_config": {"num_position_embeddings": 80}}, r"vision_config\.num_position_embeddings"),
     ("qwen3_vl", {"vision_config": None}, "vision_config"), ("qwen3_vl", {"image_token_id": -1}, "image_token_id"),
     ("qwen2_vl", {"vision_config": {"depth": 3}}, r"visual\.blocks\.2"),
     ("qwen2_vl", {"vision_config": {"depth": 1}}, r"visual\.blocks\.1.*no place"),
     ("qwen2_vl", {"vision_config": {"patch_size": 16}}, "patch_size"),
     ("qwen2_vl", {"vision_config": {"embed_dim": 60}}, r"visual\.patch_embed")],
)  # fmt: skip
def test_what_does_not_fit_is_named(saved: dict[str, Path], kind: str, change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_qwen_vl(with_config(open_source(saved[kind]), change), "wrong", LENGTHS)


def test_files_that_must_be_there(saved: dict[str, Path]) -> None:
    source = open_source(saved["qwen3_vl"])
    for name in ("tokenizer.json", "preprocessor_config.json"):
        files = {file: path for file, path in source.files.items() if file != name}
        with pytest.raises(InputError, match=name):
            load_qwen_vl(replace(source, files=files), "wrong", LENGTHS)
    tensors = {name: tensor for name, tensor in source.tensors.items() if "patch_embed" not in name}
    with pytest.raises(InputError, match="patch embedding"):
        load_qwen_vl(replace(source, tensors=tensors), "wrong", LENGTHS)


def test_lengths(saved: dict[str, Path]) -> None:
    folder = saved["qwen2_vl"]
    config = load(folder, Lengths(patches=64))[0].config
    assert (config["patches"], config["prompt"], config["cache"]) == (64, 128, 384)
    assert config["image"]["max_pixels"] == 64 * 14 * 14
    for lengths in (
        Lengths(patches=66),
        Lengths(patches=8),
        Lengths(patches=64, cache=513),
        Lengths(patches=64, prompt=9, cache=9),
    ):
        with pytest.raises(UsageError, match="lengths"):
            load(folder, lengths)


def test_a_quantized_checkpoint(saved: dict[str, Path], tmp_path: Path) -> None:
    """The language model in integers and the tower as it was; the commands see five components that every target takes."""
    folder, cache = saved["qwen2_5_vl"], ["--cache", str(tmp_path / "cache")]
    inspected = CliRunner().invoke(
        app, ["inspect", str(folder), "-t", "qualcomm/sm8650", "-t", "x86/avx512-vnni", "--json"]
    )
    assert inspected.exit_code == 0, inspected.output
    ported = CliRunner().invoke(
        app, ["port", str(folder), "--out", str(tmp_path / "run"), "-f", "compressed-tensors", *cache]
    )
    assert ported.exit_code == 0, ported.output
    (made,) = (tmp_path / "run").rglob("model.safetensors")
    names, before = load_file(made), load_file(folder / "model.safetensors")
    assert {name for name in names if name.startswith("visual.")} == {
        name for name in before if name.startswith("visual.")
    }
    assert "model.layers.2.mlp.up_proj.weight_packed" in names and "model.layers.2.mlp.up_proj.weight" not in names
