"""Conditioning on the road: asked for by a recipe, checked, recorded; nothing changes without it."""

from pathlib import Path

import jsonschema
import numpy as np
import onnx
import pytest

from pocketport.calibration.metrics import sqnr_db
from pocketport.compress.bundle import ModelBundle
from pocketport.compress.conditioning.condition import condition as condition_bundle
from pocketport.compress.executors.ort_executor import OrtExecutor
from pocketport.compress.ingest import ingest
from pocketport.compress.recipe import Conditioning
from pocketport.data import load_data
from pocketport.errors import UsageError, VerificationError
from pocketport.pipeline import run_until
from pocketport.report.document import finish_run
from pocketport.request import Request
from pocketport.run_document import json_schema
from pocketport.stages import condition
from pocketport.stages.context import Context
from pocketport.stages.ingest import load_bundle
from pocketport.stages.weights import plan_formats
from pocketport.store import Store


def context(model: Path, data: Path, out: Path, recipe: str, store: Store | None = None) -> Context:
    if recipe == "equalized":
        file = data.with_name("equalized.yaml")
        file.write_text("conditioning: [{rewrite: equalize}]")
        recipe = str(file)
    request = Request(source=str(model), data=str(data), targets=["x86"], recipe=recipe)
    return Context(request, store or Store(), out)


def test_a_conditioned_run_says_what_was_done(model: Path, data: Path, tmp_path: Path) -> None:
    document = finish_run(run_until(context(model, data, tmp_path / "out", "equalized"), "profile"))
    assert document.conditioning is not None
    (rewrite,) = document.conditioning.rewrites
    assert (rewrite.rewrite, rewrite.streams, rewrite.components) == ("equalize", 1, ["main"])
    assert 100 < document.conditioning.sqnr_db["main"] < 200
    (target,) = document.targets
    assert target.status == "ok" and target.task is not None and target.task.value > 0.99
    jsonschema.validate(document.model_dump(by_alias=True), json_schema())
    assert {"condition", "equivalence", "held-out", "held-out original"} <= {s.name for s in document.stages}


def test_the_pivot_holds_the_conditioned_weights(model: Path, data: Path, tmp_path: Path) -> None:
    run = run_until(context(model, data, tmp_path / "out", "equalized"), "quantize")
    before = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(model).graph.initializer}
    after = load_bundle(run.conditioned)["main"].graph.graph.initializers
    first, second = (np.asarray(after[n].const_value.numpy()) for n in ("w1", "w2"))  # type: ignore[union-attr]
    np.testing.assert_allclose(np.abs(first).max(1), np.abs(second).max(0), rtol=1e-4)
    assert not np.allclose(first, before["w1"])
    pivot = ModelBundle.load(run.targets["x86"].stages["quantize"].path / "bundle")["main"].graph.graph
    scales = {n: np.ravel(v.const_value.numpy()) for n, v in pivot.initializers.items() if v.const_value is not None}
    (name,) = (n for n, v in scales.items() if "w1" in str(n) and v.size == len(first) and v.dtype == np.float32)
    assert (scales[name] <= np.abs(first).max(1) / 127 * 1.001).all()


def test_without_it_nothing_runs(model: Path, data: Path, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    plain = run_until(context(model, data, tmp_path / "plain", "default", store), "quantize")
    assert plain.conditioned is plain.ingested and plain.equivalence is None
    assert not {"condition", "equivalence"} & set(plain.context.results)
    again = run_until(context(model, data, tmp_path / "again", "equalized", store), "quantize")
    assert again.context.results["ingest"].cached and not again.context.results["calibrate"].cached
    third = run_until(context(model, data, tmp_path / "third", "equalized", store), "quantize")
    assert all(result.cached for result in third.context.results.values())


def test_a_rewrite_that_finds_nothing_is_an_error(model: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(VerificationError, match="found nothing to change"):
        run_until(context(model, data, tmp_path / "out", "smooth"), "calibrate")


def test_a_model_that_no_longer_computes_the_same_is_refused(
    model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(condition, "LEAST_DB", 190.0)  # more than float32 has
    with pytest.raises(VerificationError, match="dB from float") as caught:
        run_until(context(model, data, tmp_path / "out", "equalized"), "calibrate")
    assert caught.value.where.startswith("component main, output")


def test_formats_of_weights_have_no_graph_to_condition() -> None:
    with pytest.raises(UsageError, match="rotate rewrites graphs"):
        plan_formats(Request(source="reference", formats=["gguf:q8_0"], recipe="rotated"))


def test_a_rotation_goes_through_the_whole_chain() -> None:
    """Text and image tokens meet in prefill, so the embedding and the connector turn with it."""
    bundle = ingest("reference")
    request = Request(source="reference")
    steps = [Conditioning(rewrite="rotate")]
    rotated, (done,) = condition_bundle(bundle, steps, lambda _: iter(()), chained=True)
    assert {"connector", "embed", "prefill", "decode"} <= set(done.components)
    assert {"embed/embeds", "connector/vision_tokens", "prefill/inputs_embeds", "decode/past_value_0"} <= set(
        done.crossings
    )
    found: list[dict[str, np.ndarray]] = []
    for model in (bundle, rotated):
        outputs: dict[str, np.ndarray] = {}
        executors = {c.name: OrtExecutor(c.graph) for c in model}
        for name, feeds in load_data(model, request).held_out():
            outputs |= executors[name].run(feeds)
            if name == "decode":
                break
        found.append(outputs)
    before, after = found
    assert sqnr_db(before["logits"], after["logits"]) > 100
    for tensor in ("embeds", "vision_tokens"):
        assert sqnr_db(before[tensor], after[tensor]) < 10
        np.testing.assert_allclose(*(np.linalg.norm(x[tensor], axis=1) for x in found), rtol=1e-4)
