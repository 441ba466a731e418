"""The reference model to all four vendors, with their real toolchains: compiled, executed, scored, profiled, gated."""

import json
from pathlib import Path

import jsonschema
import pytest

from pocketport.calibration.sources.rendered_text import RenderedText
from pocketport.pipeline import run_until
from pocketport.report.document import finish_run
from pocketport.request import Request
from pocketport.run_document import RunDocument, TargetRecord, json_schema
from pocketport.running import answer, open_model
from pocketport.stages.context import Context
from pocketport.store import Store
from pocketport.targets.contract import Target
from pocketport.targets.x86.target import lacking
from pocketport.tasks.read_text import HELD_OUT_SEED

TARGETS = {
    "qualcomm/sm8650": {"qnn-context"},
    "apple/a17-pro": {"aimodel", "mlpackage"},
    "mediatek/mt6989": {"tflite"},
    "x86": {"onnx", "openvino-ir"},
}
COMPONENTS = ("vision", "connector", "embed", "prefill", "decode")
LEAST_SQNR_DB = 15.0  # of the worst output of a 4-bit component against float
LEAST_PIVOT_DB = 30.0  # how faithfully a vendor's runtime keeps our numbers


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("reference")


@pytest.fixture(scope="module")
def document(folder: Path) -> RunDocument:
    for package in ("onnxruntime_qnn", "coreai", "coremltools", "ai_edge_litert", "openvino"):
        pytest.importorskip(package)
    request = Request(
        source="reference",
        targets=list(TARGETS),
        budget="default",
        calibration_samples=16,
        task_samples=24,
        emulated_task_samples=6,
    )
    context = Context(request, Store(folder / "cache"), folder / "out")
    context.out.mkdir()
    document = finish_run(run_until(context, "profile"))
    jsonschema.validate(json.loads((context.out / "run.json").read_text()), json_schema())
    assert (context.out / "report.html").stat().st_size > 50_000
    return document


def target(document: RunDocument, name: str) -> TargetRecord:
    return next(t for t in document.targets if t.id == name)


@pytest.mark.parametrize("name", TARGETS)
def test_every_component_is_compiled_and_executed(document: RunDocument, name: str) -> None:
    found = target(document, name)
    assert found.status == "ok", found.diagnostics
    assert [c.name for c in found.components] == list(COMPONENTS)
    for component in found.components:
        kinds = TARGETS[name] - left_out(found, component.name)
        assert {a.kind for a in component.artifacts} == kinds
        verified = [v for v in (component.verify, *component.verify_others) if v]
        assert {v.kind for v in verified} == kinds
        for record in verified:
            assert record.sqnr_db > LEAST_SQNR_DB, (component.name, record)
            assert record.pivot_db > LEAST_PIVOT_DB, (component.name, record)
        assert sum(a.bytes for a in component.artifacts if a.primary) < 0.75 * 4 * parameters(document, component.name)


def left_out(found: TargetRecord, component: str) -> set[str]:
    """Engines that a warning says were left out, where their kernels are known to err: OpenVINO's integers saturate without VNNI,
    and with AVX-512 its attention of the connector depends on what ran before."""
    lacks = {name: bool(lacking(Target("x86", name))) for name in ("avx-vnni", "avx512-vnni")}
    if all(lacks.values()) or (component == "connector" and not lacks["avx512-vnni"]):
        warned = {d.code for d in found.diagnostics if d.where.startswith(f"{component},")}
        return {"openvino-ir"} & {code.removeprefix("x86.").removesuffix("-inexact") for code in warned}
    return set()


def parameters(document: RunDocument, component: str) -> int:
    return next(c.parameters for c in document.model.components if c.name == component)


@pytest.mark.parametrize("name", TARGETS)
def test_it_reads_as_float_does(document: RunDocument, name: str) -> None:
    task = target(document, name).task
    assert task is not None and task.metric == "exact_match"
    assert task.extra["cer"] <= task.extra["float_cer"] + 0.05
    assert task.n == (24 if name == "x86" else 6)


def test_run_answers_what_was_scored(document: RunDocument, folder: Path) -> None:
    task, images = target(document, "x86").task, RenderedText(seed=HELD_OUT_SEED, fonts="held_out")
    assert task is not None and len(task.samples) >= 4
    with open_model(folder / "out") as model:
        for scored in task.samples[:4]:
            sample = images[scored.index]
            read, _ = answer(model, sample.image, sample.prompt, None, lambda text: None)
            assert read.text.strip() == scored.text


def test_everything_goes_to_the_hexagon(document: RunDocument) -> None:
    for component in target(document, "qualcomm/sm8650").components:
        assert component.offload is not None
        assert component.offload.npu_ops == component.offload.total_ops > 0
        (artifact,) = component.artifacts
        assert artifact.facts["soc_model"] == 57


def test_figures_say_where_they_come_from(document: RunDocument) -> None:
    for found in document.targets:
        assert found.profile is not None
        by_name = {m.name: m for m in found.profile.measurements}
        assert {"image_encode", "time_to_first_token", "tokens_per_second", "peak_memory", "artifact_size"} <= set(
            by_name
        )
        expected = "measured" if found.id == "x86" else "predicted"
        assert by_name["image_encode"].provenance == expected
        assert all(m.detail for m in by_name.values())


def test_the_parity_gate_was_passed(document: RunDocument) -> None:
    figures = document.model.parity["figures"]
    assert {f["component"] for f in figures} >= {"vision", "connector", "prefill", "decode"}
    assert all(f["sqnr_db"] is None or f["sqnr_db"] >= document.model.parity["least_sqnr_db"] for f in figures)
