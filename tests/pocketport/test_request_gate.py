"""Budgets by request, held against finished runs: figures are given, so every sum is known."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pocketport.cli import app
from pocketport.compress.ingest import ingest
from pocketport.errors import UsageError
from pocketport.profiles.budget import parse_budget
from pocketport.report.verdict import gate_document
from pocketport.run_document import ComponentRecord, TargetRecord, TaskRecord, VerdictRecord, load_document
from pocketport.targets.configuration import ComponentConfiguration, Configuration, Contender
from tests.pocketport.hand_made_run import profile, write_document

NAMES = ["vision", "connector", "embed", "prefill", "decode"]
TASK = TaskRecord(metric="exact_match", value=0.9, float_value=0.93, n=100, provenance="measured", engine="given")
BUDGET = """
version: 2
scenarios:
  photo: {image: 300x300, prompt_tokens: 8, answer_tokens: 11}
  text: {prompt_tokens: 8, answer_tokens: 2}
  novel: {image: 300x300, prompt_tokens: 5000, answer_tokens: 2}
devices:
  "x86/*":
    "*": {request_latency: 1 s}
    photo: {image_encode: 1 ms, steady_memory: 1 MB, score_drop: 2 points}
  xiaomi-14-pro:
    photo: {time_to_first_token: 1 s, load_time: 1 s, app_size: 100 MB}
"""


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reference model: 10 ms a call on x86 (measured), 2 ms on the phone (predicted)."""
    directory, bundle = tmp_path_factory.mktemp("run"), ingest("reference")
    targets = []
    for name, provenance, ms in (("x86", "measured", 10.0), ("qualcomm/sm8650", "predicted", 2.0)):
        bundle.save(directory / name.replace("/", "-") / "pivot" / "bundle")
        components = [ComponentRecord(name=n, scheme="float", pivot_bytes=1) for n in NAMES]
        targets.append(
            TargetRecord(id=name, status="ok", components=components, profile=profile(NAMES, provenance, ms), task=TASK)
        )
    write_document(directory, bundle, targets)
    return directory


def checks(verdict: VerdictRecord) -> dict[tuple[str, str, str], tuple[float | None, str]]:
    return {(c.target, c.scenario, c.name): (c.value, c.status) for c in verdict.checks}


def judged(directory: Path, budget: str = BUDGET) -> VerdictRecord:
    return gate_document(load_document(directory), parse_budget(budget, "budget"), directory)


def views(directory: Path) -> int:
    """Pictures that a 300×300 image becomes, by the family's own preprocessing."""
    from PIL import Image

    from pocketport.compress.families.minicpmv.config import MiniCPMVConfig
    from pocketport.compress.families.minicpmv.views import views_of

    return len(
        views_of(Image.new("RGB", (300, 300)), MiniCPMVConfig.model_validate(ingest("reference").config["model"]))[0]
    )


def test_every_request_is_summed_up(directory: Path) -> None:
    found, count = checks(judged(directory)), views(directory)
    assert count > 1
    assert found["x86/generic", "photo", "image_encode"] == (20.0 * count, "fail")
    assert found["x86/generic", "photo", "request_latency"] == (20.0 * count + 20 + 10 * 20, "pass")
    assert found["x86/generic", "text", "request_latency"] == (20 + 20, "pass")
    assert found["x86/generic", "photo", "steady_memory"] == (700.0, "pass")
    assert found["x86/generic", "photo", "score_drop"][0] == pytest.approx(3.0)
    assert found["xiaomi-14-pro", "photo", "time_to_first_token"] == (4.0 * count + 4, "pass")
    assert found["xiaomi-14-pro", "photo", "app_size"] == (2e7, "pass")
    value, status = found["xiaomi-14-pro", "photo", "load_time"]
    assert value is not None and 1 < value < 100 and status == "pass"


def test_what_the_static_shapes_do_not_take_fails_with_the_reason(directory: Path) -> None:
    verdict = judged(directory)
    (novel,) = [c for c in verdict.checks if c.scenario == "novel"]
    assert (novel.value, novel.status) == (None, "fail")
    assert "tokens, the graphs take" in novel.reason
    long = BUDGET.replace("answer_tokens: 11", "answer_tokens: 100000")
    (answer, *_) = [c for c in judged(directory, long).checks if c.scenario == "photo" and c.name == "request_latency"]
    assert answer.status == "fail" and "the cache takes" in answer.reason


def test_limits_of_targets_and_requests_are_held_together(directory: Path) -> None:
    both = BUDGET + "targets:\n  '*': {artifact_size: 1 MB}\n"
    found = checks(judged(directory, both))
    assert found["qualcomm/sm8650", "", "artifact_size"] == (2e7, "fail")
    assert found["x86/generic", "text", "request_latency"][1] == "pass"


def test_a_budget_about_other_devices_says_nothing(directory: Path) -> None:
    other = BUDGET.replace('"x86/*"', "galaxy-s99").replace("xiaomi-14-pro", "galaxy-s98")
    with pytest.raises(UsageError, match="no limit applies"):
        judged(directory, other)


def test_a_tuned_run_is_judged_by_what_was_found(directory: Path) -> None:
    document = load_document(directory)
    settings = {"engine": "openvino"}
    chosen = Contender(
        name="chosen", settings=settings, ms=1.0, mad_ms=0.1, gain=None, fidelity_db=90, cold_ms=5, peak_bytes=1
    )
    component = ComponentConfiguration(
        kind="onnx",
        artifact="a",
        sha256="a" * 64,
        settings=settings,
        tried=1,
        turns=6,
        least_db=40,
        contenders=[chosen],
    )
    Configuration(processor="Some CPU", threads=1, engines={}, components={"vision": component}).save(
        directory / "x86.json"
    )
    try:
        assert checks(judged(directory))["x86/generic", "photo", "image_encode"][0] == 20.0 * views(directory), (
            "of others"
        )
        for c in document.targets[0].components:
            c.artifacts = [{"path": "a", "kind": "onnx", "bytes": 1, "sha256": "a" * 64, "primary": True}]  # type: ignore[list-item]
        document = type(document).model_validate(document.model_dump(by_alias=True))
        found = checks(gate_document(document, parse_budget(BUDGET, "budget"), directory))
        assert found["x86/generic", "photo", "image_encode"][0] == 11.0 * views(directory)
    finally:
        (directory / "x86.json").unlink()


def test_the_command_shows_requests_and_leaves_with_one(directory: Path, tmp_path: Path) -> None:
    path = tmp_path / "budget.yaml"
    path.write_text(BUDGET, encoding="utf-8")
    shown = CliRunner().invoke(app, ["gate", str(directory), "--budget", str(path)])
    assert shown.exit_code == 1 and "photo" in shown.stdout and "the graphs take" in shown.stdout
    told = CliRunner().invoke(app, ["gate", str(directory), "--budget", str(path), "--json"])
    document = json.loads(told.stdout)
    assert document["status"] == "fail" and {c["scenario"] for c in document["checks"]} == {"photo", "text", "novel"}
