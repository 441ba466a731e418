import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from pocketport.compress.builder import OPSET
from pocketport.compress.bundle import ModelBundle
from pocketport.compress.executors.ort_executor import OrtExecutor
from pocketport.compress.graph import static_shape
from pocketport.compress.ingest import ingest
from pocketport.compress.parity import check_parity
from pocketport.errors import InputError, VerificationError


def test_the_components_are_as_the_architecture_says(tiny_minicpmv: Path) -> None:
    bundle = ingest(tiny_minicpmv)
    assert list(bundle.components) == ["vision", "connector", "embed", "prefill", "decode"]
    length, prompt, cache = (bundle.config[k] for k in ("patches", "prompt", "cache"))
    assert (length, prompt, cache) == (72, 224, 230)
    past = {f"past_{kind}_{i}": (1, 2, cache, 32) for i in range(2) for kind in ("key", "value")}
    attention = {"rope_cos": (prompt, 32), "rope_sin": (prompt, 32), "attention_bias": (1, prompt, prompt)}
    expected = {
        "vision": {"pixel_values": (1, 3, 14, 14 * length), "position_ids": (length,), "attention_bias": (1, 1, length)},
        "connector": {"vision_features": (length, 48), "position_embeds": (length, 128), "attention_bias": (1, 1, length)},
        "embed": {"input_ids": (prompt,)},
        "prefill": {"inputs_embeds": (prompt, 128), **attention},
        "decode": {"inputs_embeds": (1, 128), "rope_cos": (1, 32), "rope_sin": (1, 32), "attention_bias": (1, 1, cache + 1), **past},
    }  # fmt: skip
    for component in bundle:
        graph = component.graph.graph
        assert {v.name: static_shape(v) for v in graph.inputs} == expected[component.name]
        assert all(static_shape(o) is not None and o.dtype is not None for node in graph for o in node.outputs)
        assert graph.opset_imports[""] == OPSET
    outputs = {v.name: static_shape(v) for v in bundle["decode"].graph.graph.outputs}
    assert outputs == {"logits": (1, 288), **{n.replace("past", "present"): (1, 2, 1, 32) for n in past}}


def test_linear_layers_are_gemms_with_the_checkpoints_weights(tiny_minicpmv: Path) -> None:
    weights = load_file(tiny_minicpmv / "model.safetensors")
    for component in ingest(tiny_minicpmv):
        for name, value in component.graph.graph.initializers.items():
            if name in weights and name != "resampler.proj":
                np.testing.assert_array_equal(value.const_value.numpy(), weights[name].numpy())
        for node in component.graph.graph:
            if node.op_type == "Gemm":
                assert node.attributes["transB"].as_int() == 1
                assert len(static_shape(node.inputs[0]) or ()) == 2


def test_they_reproduce_the_torch_model(tiny_minicpmv: Path) -> None:
    report = check_parity(ingest(tiny_minicpmv), tiny_minicpmv)
    figures = {(f.component, f.tensor): f for f in report.figures}
    assert all(f.sqnr_db > 90 for f in figures.values())
    assert figures["decode", "token_ids"].max_abs == 0
    assert figures["vision", "vision_features"].comparisons > 4, "some image must have been sliced"
    assert json.dumps(report.to_json())


def test_half_precision_checkpoints_and_a_saved_bundle(tiny_minicpmv: Path, tmp_path: Path) -> None:
    path = tiny_minicpmv / "model.safetensors"
    save_file({name: tensor.to(torch.bfloat16) for name, tensor in load_file(path).items()}, path)
    bundle = ingest(tiny_minicpmv)
    check_parity(bundle, tiny_minicpmv)
    bundle.save(tmp_path / "bundle")
    again = ModelBundle.load(tmp_path / "bundle")
    assert again.shared == bundle.shared and again.config == bundle.config
    ids = np.arange(224, dtype=np.int32)
    first, second = (OrtExecutor(b["embed"].graph).run({"input_ids": ids})["embeds"] for b in (bundle, again))
    np.testing.assert_array_equal(first, second)


def test_the_gate_sees_a_wrong_weight(tiny_minicpmv: Path, tmp_path: Path) -> None:
    ingest(tiny_minicpmv).save(tmp_path / "bundle")
    bundle, path = ModelBundle.load(tmp_path / "bundle"), tiny_minicpmv / "model.safetensors"
    weights = load_file(path)
    weights["llm.model.layers.1.self_attn.v_proj.weight"] *= 1.05
    save_file(weights, path)
    with pytest.raises(VerificationError, match=r"present_value_1|logits|token_ids"):
        check_parity(bundle, tiny_minicpmv)


def test_what_does_not_fit_is_named(tiny_minicpmv: Path) -> None:
    weights = load_file(tiny_minicpmv / "model.safetensors")
    lacking = {k: v for k, v in weights.items() if k != "resampler.query"}
    save_file(lacking, tiny_minicpmv / "model.safetensors")
    with pytest.raises(InputError, match=r"resampler\.query"):
        ingest(tiny_minicpmv)
    extra = "llm.model.layers.2.mlp.up_proj.weight"
    save_file({**weights, extra: torch.zeros(2, 2)}, tiny_minicpmv / "model.safetensors")
    with pytest.raises(InputError, match=extra.replace(".", r"\.")):
        ingest(tiny_minicpmv)
    save_file({**weights, "resampler.query": torch.zeros(9, 128)}, tiny_minicpmv / "model.safetensors")
    with pytest.raises(InputError, match=r"resampler\.query.*\[8, 128\]"):
        ingest(tiny_minicpmv)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"version": "3.1"}, "3.1"), ({"max_position_embeddings": 225}, "max_position_embeddings"), ({"model_type": "llava"}, "llava"),
     ({"hidden_size": None}, "hidden_size")],
)  # fmt: skip
def test_configurations_that_are_refused(tiny_minicpmv: Path, change: dict[str, object], message: str) -> None:
    path = tiny_minicpmv / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(InputError, match=message):
        ingest(tiny_minicpmv)


def test_static_lengths_without_a_processor_file_cover_every_view(tiny_minicpmv: Path) -> None:
    (tiny_minicpmv / "preprocessor_config.json").unlink()
    bundle = ingest(tiny_minicpmv)
    assert bundle.config["patches"] >= 72, "72 is the exact maximum up to an aspect ratio of 4"
    assert bundle.config["prompt"] % 32 == 0
