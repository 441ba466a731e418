"""MiniCPM-V 4.6 and 4.7 against transformers, and what is refused."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from minicpmv46_models import SPECIAL, save_minicpmv46
from PIL import Image

from pocketport.calibration.metrics import sqnr_db
from pocketport.compress.executors import torch_executor
from pocketport.compress.executors.ort_executor import OrtExecutor
from pocketport.compress.families.chat import chain_feeds
from pocketport.compress.families.minicpmv4_6 import parity
from pocketport.compress.families.minicpmv4_6.load import load_minicpmv46
from pocketport.compress.families.minicpmv4_6.runner import MergerChat, meaningful_rows
from pocketport.compress.families.minicpmv4_6.views import views_of
from pocketport.compress.families.registry import Lengths, family_of
from pocketport.compress.families.transformers_reference import transformers_model
from pocketport.compress.sources.open import open_source
from pocketport.errors import InputError, UsageError

pytest.importorskip("transformers")
LEAST_SQNR_DB = 60.0
CHANGES: Mapping[str, tuple[str, dict[str, Any]]] = {
    "4.6": ("4.6", {}), "4.7": ("4.7", {}), "4x": ("4.6", {"downsample_mode": "4x"}),
}  # fmt: skip


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Checkpoints by name, made once."""
    root = tmp_path_factory.mktemp("minicpmv46")
    return {name: save_minicpmv46(root / name, version, **changes) for name, (version, changes) in CHANGES.items()}


@pytest.mark.parametrize("name", CHANGES)
def test_it_computes_what_transformers_computes(saved: dict[str, Path], name: str) -> None:
    source = open_source(saved[name])
    assert family_of(source).name == "minicpmv4_6"
    seen = set()
    for component, tensor, expected, found in parity.compare(load_minicpmv46(source, name, Lengths()), source):
        seen.add((component, tensor.rsplit("_", 1)[0] if tensor[-1].isdigit() else tensor))
        if expected.dtype.kind == "i":
            np.testing.assert_array_equal(expected, found)
        else:
            assert expected.shape == found.shape
            assert sqnr_db(expected, found) >= LEAST_SQNR_DB, (component, tensor)
    states = {(c, f"present_{k}") for c in ("prefill", "decode") for k in ("key", "value", "conv", "state")}
    plain = {("vision", "pixel_values"), ("vision", "vision_features"), ("connector", "vision_tokens")}
    logits = {("prefill", "logits"), ("decode", "logits"), ("decode", "token_ids")}
    assert seen == plain | states | logits | ({("prefill", "position_ids")} if name == "4.7" else set())


def test_a_large_model_is_compared_in_part(saved: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parity, "SMALL", 0)
    monkeypatch.setattr(parity, "WORDS", 96)
    source = open_source(saved["4.7"])
    small = parity.cut(source)
    assert small.config["text_config"]["layer_types"] == ["linear_attention", "full_attention"]
    assert small.config["vision_config"]["num_hidden_layers"] == 2
    pairs = list(parity.compare(load_minicpmv46(source, "tiny", Lengths()), source))
    assert {(c, t) for c, t, _, _ in pairs} >= {
        ("vision", "vision_features"),
        ("decode", "present_state_0"),
        ("decode", "token_ids"),
    }
    assert all(np.array_equal(e, f) if e.dtype.kind == "i" else sqnr_db(e, f) >= LEAST_SQNR_DB for _, _, e, f in pairs)


def test_chat_answers_as_transformers_generates(saved: dict[str, Path]) -> None:
    """The whole way from a picture to greedy tokens, with the cache of each side."""
    source = open_source(saved["4.7"])
    bundle = load_minicpmv46(source, "tiny", Lengths())
    chat = MergerChat({c.name: OrtExecutor(c.graph) for c in bundle}, bundle.config, bundle.files)
    image = Image.fromarray(np.random.default_rng(5).integers(0, 256, (13, 20, 3), np.uint8)).resize((220, 130))
    found = chat.read(image, "What is it?")
    prompt = chat.encode(image, "What is it?")
    model: Any = transformers_model(source, "AutoModelForImageTextToText")
    pixels = parity.processed(image, chat.config, chat.processor)
    ids = torch.tensor([prompt.input_ids])
    expected = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), mm_token_type_ids=(ids == chat.config.image_token_id).int(),
        pixel_values=torch.from_numpy(pixels["pixel_values"]), target_sizes=torch.from_numpy(pixels["target_sizes"]),
        max_new_tokens=8, do_sample=False, eos_token_id=SPECIAL["<|im_end|>"], pad_token_id=0,
    )  # fmt: skip
    assert found.token_ids == expected[0, len(prompt.input_ids) :].tolist()
    assert found.views == 3 and found.prompt_tokens == len(prompt.input_ids)


def test_the_torch_executor_runs_every_component(saved: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Along a whole answer, as calibration does; against onnxruntime on the same feeds."""
    monkeypatch.setattr(torch_executor, "matrix_dtype", lambda: torch.float32)
    bundle = load_minicpmv46(open_source(saved["4.6"]), "tiny", Lengths())
    chat = MergerChat({c.name: OrtExecutor(c.graph) for c in bundle}, bundle.config, bundle.files)
    seen = set()
    for component, feeds in chain_feeds(
        chat, [(Image.new("RGB", (150, 90), "teal"), "What is it?", "blue")], decode_steps=2
    ):
        expected = chat.executors[component].run(feeds)
        for name, found in torch_executor.TorchExecutor(bundle[component].graph).run(feeds).items():
            assert sqnr_db(np.asarray(expected[name]), np.asarray(found)) >= LEAST_SQNR_DB, (component, name)
        seen.add(component)
    assert seen == set(bundle.components)


def test_rows_that_mean_something(saved: dict[str, Path]) -> None:
    bundle = load_minicpmv46(open_source(saved["4.6"]), "tiny", Lengths())
    chat = MergerChat({}, bundle.config, bundle.files)
    view = views_of(Image.new("RGB", (90, 60)), chat.config, chat.processor)[0][0]
    feeds = view.feeds(chat.patches, 2)
    assert meaningful_rows("vision", feeds, ["vision_features"]) == {"vision_features": (0, 0, 4 * view.tokens)}
    inputs = {v.name: tuple(v.shape or ()) for v in bundle["vision"].graph.graph.inputs}
    assert inputs == {name: array.shape for name, array in feeds.items()}


def test_weights_go_in_as_they_lie_on_disk(saved: dict[str, Path]) -> None:
    source = open_source(saved["4.6"])
    bundle = load_minicpmv46(source, "tiny", Lengths())
    used = {name for component in bundle for name in component.graph.graph.initializers}
    changed = {name for name in source.tensors if name not in used}
    assert all(name.endswith(("norm.weight", "A_log", "conv1d.weight")) for name in changed)
    assert not any(name.endswith(("_proj.weight", "linear_attn.norm.weight")) for name in changed)


CONFIG = [
    ({"merger_times": 2}, "merger_times"), ({"insert_layer_id": 3}, "insert_layer_id"), ({"downsample_mode": "8x"}, "downsample_mode"),
    ({"image_token_id": None}, "image_token_id"), ({"vision_config": None}, "vision_config"),
    ({"vision_config": {"num_attention_heads": 5, "hidden_size": 48}}, "num_attention_heads"),
    ({"vision_config": {"window_kernel_size": [4, 4]}}, "window_kernel_size"), ({"text_config": {}}, "hidden_size"),
    ({"text_config": {"model_type": "qwen3_5_moe_text"}}, "model_type"), ({"newline_id": None}, "newline_id"),
]  # fmt: skip
PROCESSOR = [
    ({"patch_size": 16}, "patch_size"), ({"downsample_mode": "4x"}, "downsample_mode"), ({"image_mean": [0.4, 0.5, 0.5]}, "image_mean"),
    ({"max_slice_nums": 0}, "max_slice_nums"), ({"resample": 2}, "resample"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("file", "change", "key"),
    [*(("config.json", *c) for c in CONFIG), *(("preprocessor_config.json", *c) for c in PROCESSOR)],
)
def test_what_is_refused_names_its_key(
    saved: dict[str, Path], tmp_path: Path, file: str, change: dict[str, Any], key: str
) -> None:
    folder = copied(saved["4.7"], tmp_path)
    document = {**json.loads((folder / file).read_text()), **change}
    (folder / file).write_text(json.dumps(document))
    with pytest.raises(InputError, match=key):
        load_minicpmv46(open_source(folder), "tiny", Lengths())


TEMPLATES = ["{{ messages[0].content }}", "{% for x in %}", "{{ 1 / 0 }}", "{{ ''.__class__.__mro__ }}", "{{ '<|image_pad|>' * 2 }}", "{{ raise_exception('no') }}", "{{ cycler.__init__.__globals__.os.getcwd() }}"]  # fmt: skip


@pytest.mark.parametrize("template", TEMPLATES)
def test_templates_that_are_refused(saved: dict[str, Path], tmp_path: Path, template: str) -> None:
    folder = copied(saved["4.6"], tmp_path)
    (folder / "chat_template.jinja").write_text(template)
    with pytest.raises(InputError, match="template"):
        load_minicpmv46(open_source(folder), "tiny", Lengths())


def test_files_and_tokens_that_are_missing(saved: dict[str, Path], tmp_path: Path) -> None:
    folder = copied(saved["4.6"], tmp_path)
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(InputError, match="chat template"):
        load_minicpmv46(open_source(folder), "tiny", Lengths())
    tokenizer = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(tokenizer.replace("</slice>", "</piece>"))
    with pytest.raises(InputError, match="</slice>"):
        load_minicpmv46(open_source(folder), "tiny", Lengths())
    (folder / "tokenizer.json").unlink()
    with pytest.raises(InputError, match="tokenizer"):
        load_minicpmv46(open_source(folder), "tiny", Lengths())


def test_what_does_not_fit(saved: dict[str, Path]) -> None:
    source = open_source(saved["4.6"])
    with pytest.raises(UsageError, match="context"):
        load_minicpmv46(source, "tiny", Lengths(prompt=4000))
    bundle = load_minicpmv46(source, "tiny", Lengths(patches=16))
    chat = MergerChat({}, bundle.config, bundle.files)
    with pytest.raises(InputError, match="exceeds the 16"):
        chat.encode(Image.new("RGB", (100, 100)), "?")
    chat = MergerChat(
        executors(load_minicpmv46(source, "tiny", Lengths()).components), bundle.config | {"patches": 96}, bundle.files
    )
    with pytest.raises(InputError, match="stands for an image"):
        chat.encode(Image.new("RGB", (100, 100)), "a <|image_pad|>?")


def executors(components: Mapping[str, Any]) -> dict[str, OrtExecutor]:
    graphs: dict[str, ir.Model] = {name: components[name].graph for name in ("vision", "connector")}
    return {name: OrtExecutor(graph) for name, graph in graphs.items()}


def copied(folder: Path, target: Path) -> Path:
    for file in folder.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    return target
