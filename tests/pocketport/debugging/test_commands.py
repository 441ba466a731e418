"""`debug` and `compare` on two small runs: every figure again from the runs' own files, repairs that hold, typed errors."""

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from typer.testing import CliRunner

from pocketport.calibration.metrics import sqnr_db
from pocketport.cli import app
from pocketport.commands import console
from pocketport.compress.recipe import load_recipe
from pocketport.errors import PocketportError
from pocketport.pipeline import run_until
from pocketport.report.document import finish_run
from pocketport.request import Request
from pocketport.stages.context import Context
from pocketport.store import Store
from tests.pocketport.conftest import perceptron


def port(folder: Path, name: str, last: str, **changes: object) -> Path:
    request = Request(
        source=str(folder / "perceptron.onnx"),
        data=str(folder / "samples.npz"),
        targets=["x86"],
        calibration_samples=16,
    ).model_copy(update=changes)
    finish_run(run_until(Context(request, Store(folder / "cache"), folder / name), last))
    return folder / name


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    perceptron(folder / "perceptron.onnx")
    np.savez(folder / "samples.npz", x=np.random.default_rng(1).standard_normal((24, 1, 16)).astype(np.float32))
    (folder / "coarse.yaml").write_text("name: coarse\nrules:\n  - {scheme: w4ca8, algorithm: rtn, observer: mse}\n")
    port(folder, "a", "verify")
    port(folder, "b", "quantize", recipe=str(folder / "coarse.yaml"))
    return folder


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console.out, "width", 200)


def called(folder: Path, *arguments: str) -> dict:
    result = CliRunner().invoke(app, [*arguments, "--json"], catch_exceptions=False)
    assert result.exit_code == 0
    document: dict = json.loads(result.stdout)
    return document


def worst_db(folder: Path, pivot: Path) -> float:
    """SQNR of a pivot on the first of the held-out samples (a quarter of 24, at most four are verified)."""
    feeds = np.load(folder / "samples.npz")["x"][-6:][:4]
    made = []
    for path in (folder / "perceptron.onnx", pivot):
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        made.append(np.concatenate([session.run(["y"], {"x": x})[0].ravel() for x in feeds]))
    return sqnr_db(*made)


def test_debug_says_what_the_runs_files_say(runs: Path) -> None:
    page = runs / "debug.html"
    found = called(runs, "debug", str(runs / "a"), "--cache", str(runs / "cache"), "--html", str(page))
    (target,) = found["targets"]
    (component,) = target["components"]
    expected = worst_db(runs, runs / "a" / "x86" / "pivot" / "bundle" / "main.onnx")
    assert component["db"] == pytest.approx(expected, abs=0.02)
    # Alone each costs less than both, but for errors that happen to cancel.
    assert min(component["activations_db"], component["constants_db"]) > component["db"] - 0.5
    stored = json.loads((runs / "a" / "run.json").read_text())["targets"][0]["components"][0]
    assert component["outputs"] == [
        {"output": "y", "pivot_db": component["db"], "executed_db": stored["verify"]["outputs"]["y"]}
    ]
    assert component["device_bytes"] == sum(a["bytes"] for a in stored["artifacts"] if a["primary"])
    floats = {i.name: 4 * int(np.prod(i.dims)) for i in onnx.load(runs / "perceptron.onnx").graph.initializer}
    sizes = {s["kind"]: s for s in component["sizes"]}
    assert sizes["weight"]["float_bytes"] == floats["w1"] + floats["w2"]
    assert sizes["weight"]["packed_bytes"] < sizes["weight"]["float_bytes"]
    shares = [w["share"] for w in target["worst"]]
    assert shares == sorted(shares, reverse=True)
    assert {t["tensor"].removesuffix("/scaled") for t in target["tensors"]} == {"x", "r", "w1", "w2"}
    assert all(sum(w["before"]) == sum(w["after"]) > 0 for w in target["worst"])
    assert target["attribution"]["everything"]["score"] < 1.0 and target["attribution"]["all_but"] == {}
    text = page.read_text()
    assert text.count("<svg") == len(target["worst"]) and "http" not in text.replace("http://www.w3.org/", "")
    shown = CliRunner().invoke(app, ["debug", str(runs / "a"), "--cache", str(runs / "cache")], catch_exceptions=False)
    assert "main/w1" in shown.stdout and "cumulative" in shown.stdout


def test_fix_writes_a_recipe_that_holds(runs: Path) -> None:
    cache = str(runs / "cache")
    (target,) = called(runs, "debug", str(runs / "b"), "--cache", cache, "--fix", "--top", "2")["targets"]
    (repair,) = target["repairs"]
    kept = [t for t in repair["trials"] if t["kept"]]
    assert kept and repair["after_db"] == kept[-1]["after_db"] > repair["before_db"] + 1
    assert repair["before_db"] == pytest.approx(target["components"][0]["db"], abs=0.02)
    recipe = load_recipe(target["recipe"])
    assert recipe.name == "coarse-fixed" and recipe.rules == load_recipe(runs / "coarse.yaml").rules
    assert len(recipe.targets["x86"].rules) >= len(kept)
    fixed = port(runs, "fixed", "quantize", recipe=target["recipe"])
    expected = worst_db(runs, fixed / "x86" / "pivot" / "bundle" / "main.onnx")
    assert repair["after_db"] == pytest.approx(expected, abs=0.02)


def test_compare_puts_the_runs_side_by_side(runs: Path) -> None:
    page = runs / "compare.html"
    found = called(runs, "compare", str(runs / "a"), str(runs / "b"), "--html", str(page))
    (pair,) = found["targets"]
    assert [s["name"] for s in found["settings"]] == ["recipe"]
    changed = {(p["kind"], p["a"], p["b"]): p["tensors"] for p in pair["plans"]}
    assert changed["weight", "int8 per channel, mse", "int4 per channel, rtn"] == ["w1", "w2"]
    assert changed["activation", "uint8, min_max", "uint8, mse"] == ["r/scaled", "x"]
    steps = {e["tensor"]: 2 ** e["octaves"] for e in pair["encodings"]}
    assert 8 < steps["main/w1"] < 20  # 4 bits for 8
    falls = [abs(t["sqnr_b"] - t["sqnr_a"]) for t in pair["tensors"]]
    assert falls == sorted(falls, reverse=True) and falls[0] > 6
    packed = next(f for f in pair["figures"] if f["name"] == "packed weights")
    assert packed["b"] < packed["a"]
    assert "int4 per channel" in page.read_text()
    shown = CliRunner().invoke(app, ["compare", str(runs / "a"), str(runs / "b")], catch_exceptions=False)
    assert shown.exit_code == 0 and "Planned otherwise" in shown.stdout
    same = called(runs, "compare", str(runs / "a"), str(runs / "a"))["targets"][0]
    assert same["plans"] == [] and same["encodings"] == [] and same["same_encodings"] == 4


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("debug", "{a}", "--target", "apple/a17-pro"), "no target apple/a17-pro"),
        (("debug", "{a}", "--component", "vision"), "no quantized component 'vision'"),
        (("debug", "{none}"), "no finished run"),
        (("compare", "{a}", "{other}"), "different models"),
        (("compare", "{a}", "{none}"), "no finished run"),
    ],
)
def test_what_makes_no_sense_is_a_typed_error(runs: Path, arguments: tuple[str, ...], why: str) -> None:
    other = runs / "other"
    if not other.exists():
        other.mkdir()
        document = json.loads((runs / "a" / "run.json").read_text())
        document["model"]["sha256"] = "f" * 64
        (other / "run.json").write_text(json.dumps(document))
    names = {"a": runs / "a", "other": other, "none": runs / "none"}
    extra = ["--cache", str(runs / "cache")] if arguments[0] == "debug" else []
    with pytest.raises(PocketportError) as caught:
        CliRunner().invoke(app, [*(a.format(**names) for a in arguments), *extra], catch_exceptions=False)
    assert why in f"{caught.value.where}: {caught.value.why}" and caught.value.fix
