"""The road on a tiny model and the x86 target: whole, stage by stage, cached, killed and resumed."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import jsonschema
import pytest

from pocketport.files import sha256_path
from pocketport.pipeline import run_until
from pocketport.report.document import finish_run
from pocketport.request import Request
from pocketport.run_document import json_schema, load_document
from pocketport.stages.context import Context
from pocketport.store import Store

TARGET = "x86"


def request(model: Path, data: Path, **changes: object) -> Request:
    return Request(source=str(model), data=str(data), targets=[TARGET]).model_copy(update=changes)


def artifact_digests(out: Path) -> dict[str, str]:
    """Everything in the target's folder: pivot and artifacts."""
    return {p.name: sha256_path(p) for p in sorted((out / TARGET).iterdir())}


def test_the_whole_road(model: Path, data: Path, tmp_path: Path) -> None:
    context = Context(request(model, data), Store(), tmp_path / "out")
    document = finish_run(run_until(context, "profile"))
    (target,) = document.targets
    assert target.status == "ok", target.diagnostics
    (component,) = target.components
    assert component.verify is not None and component.verify.provenance == "measured" and component.verify.sqnr_db > 20
    assert {a.kind for a in component.artifacts} >= {"onnx"}
    for artifact in component.artifacts:
        path = tmp_path / "out" / artifact.path
        assert sha256_path(path) == artifact.sha256
    assert target.task is not None and target.task.metric == "cosine" and target.task.value > 0.99
    names = {m.name for m in target.profile.measurements} if target.profile else set()
    assert {"latency", "peak_memory", "artifact_size"} <= names
    stored = json.loads((tmp_path / "out" / "run.json").read_text())
    jsonschema.validate(stored, json_schema())
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<svg" in page and "http" not in page.replace("http://www.w3.org/", "")


def test_stages_one_by_one_give_the_same_bytes_and_a_second_run_is_a_lookup(
    model: Path, data: Path, tmp_path: Path
) -> None:
    whole = Context(request(model, data), Store(tmp_path / "a"), tmp_path / "whole")
    run_until(whole, "profile")
    steps = Request(source=str(model))
    for last, change in (
        ("ingest", {}), ("calibrate", {"data": str(data), "targets": [TARGET]}), ("quantize", {}), ("compile", {}), ("verify", {}),
    ):  # fmt: skip
        steps = steps.model_copy(update=change)
        run_until(Context(steps, Store(tmp_path / "b"), tmp_path / "steps"), last)
    assert artifact_digests(tmp_path / "whole") == artifact_digests(tmp_path / "steps")
    again = Context(request(model, data), Store(tmp_path / "a"), tmp_path / "again")
    finish_run(run_until(again, "profile"))
    assert all(result.cached for result in again.results.values())
    assert artifact_digests(tmp_path / "whole") == artifact_digests(tmp_path / "again")


def test_weights_are_rounded_on_the_runs_own_samples(model: Path, data: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("rules: [{algorithm: sequential_mse, algorithm_options: {candidates: 10}}]")
    digests = {}
    for name, changes in (("default", {}), ("mine", {"recipe": str(recipe)})):
        context = Context(request(model, data, **changes), Store(), tmp_path / name)
        run_until(context, "quantize")
        digests[name] = artifact_digests(tmp_path / name)
        plan = (tmp_path / name / TARGET / "pivot" / "plan.json").read_text()
        assert ('"sequential_mse"' in plan) == (name == "mine")
    assert digests["default"] != digests["mine"]


def test_a_budget_that_nobody_can_meet_fails(model: Path, data: Path, tmp_path: Path) -> None:
    budget = tmp_path / "budget.yaml"
    budget.write_text("targets:\n  '*':\n    artifact_size: 1 B\n    score_drop: 2 points\n")
    context = Context(request(model, data, budget=str(budget)), Store(), tmp_path / "out")
    document = finish_run(run_until(context, "profile"))
    assert document.verdict.status == "fail"
    assert {c.name: c.status for c in document.verdict.checks} == {"artifact_size": "fail", "score_drop": "pass"}
    assert load_document(tmp_path / "out").verdict.status == "fail"


@pytest.mark.slow
def test_killed_at_random_moments_it_resumes_to_the_same_bytes(model: Path, data: Path, tmp_path: Path) -> None:
    command = [
        sys.executable, "-m", "pocketport", "port", str(model), "--data", str(data), "--target", TARGET, "--json",
    ]  # fmt: skip

    def port(out: Path, cache: Path) -> subprocess.Popen[bytes]:
        arguments = [*command, "--out", str(out), "--cache", str(cache)]
        return subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)

    start = time.monotonic()
    assert port(tmp_path / "whole", tmp_path / "a").wait() == 0
    seconds = time.monotonic() - start
    moments = random.Random(0)
    for _ in range(5):
        process = port(tmp_path / "killed", tmp_path / "b")
        time.sleep(moments.uniform(0.2, 0.9) * seconds / 2)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert port(tmp_path / "killed", tmp_path / "b").wait() == 0
    assert artifact_digests(tmp_path / "whole") == artifact_digests(tmp_path / "killed")
