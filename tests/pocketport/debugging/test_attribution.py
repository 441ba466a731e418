"""The end-to-end loss by component, against onnxruntime on the same files."""

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from pocketport.calibration.capture import calibrate
from pocketport.compress.bundle import Component, ModelBundle
from pocketport.compress.executors.ort_executor import OrtExecutor
from pocketport.compress.graph import load_graph, save_graph
from pocketport.compress.pivot.apply import apply_plan
from pocketport.compress.planning.plan import make_plan
from pocketport.compress.recipe import Recipe
from pocketport.debugging.attribution import attribute, combinations
from pocketport.targets.contract import Target
from pocketport.targets.registry import backend_for
from pocketport.tasks.agreement import Agreement
from tests.pocketport.conftest import perceptron


def outputs(path: Path, feeds: list[dict[str, np.ndarray]]) -> np.ndarray:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(["y"], f)[0].ravel() for f in feeds]).astype(np.float64)


def test_combinations_come_once() -> None:
    assert combinations(frozenset("a")) == [frozenset(), frozenset("a")]
    assert len(combinations(frozenset("ab"))) == 4 and len(combinations(frozenset("abc"))) == 8


def test_one_component_at_a_time_and_all_but_one(tmp_path: Path) -> None:
    graphs = {
        n: load_graph(perceptron(tmp_path / f"{n}.onnx", op=op)) for n, op in (("first", "Relu"), ("second", "Tanh"))
    }
    bundle = ModelBundle("two", "onnx", "0" * 64, {n: Component(n, g) for n, g in graphs.items()})
    legality = backend_for(Target.parse("x86")).legality(Target.parse("x86"))
    plan = make_plan(bundle, Recipe(name="t"), "x86", legality)
    rng = np.random.default_rng(0)
    feeds = [{"x": rng.standard_normal((1, 16)).astype(np.float32)} for _ in range(5)]
    statistics = calibrate(graphs, [(name, f) for name in graphs for f in feeds])
    pivot, _ = apply_plan(bundle, plan, statistics)
    samples = [(name, f) for name in graphs for f in feeds]
    task = Agreement({n: OrtExecutor(g) for n, g in graphs.items()}, samples, dict.fromkeys(graphs, "y"), "t")
    seen: list[int] = []
    found = attribute(bundle, pivot, task, 100, seen.append)
    assert seen == [1, 2, 3, 4] and found.samples == 10 and found.float_score == pytest.approx(1.0)
    error, energy = {}, 0.0
    for name in graphs:
        save_graph(pivot[name].graph, tmp_path / "pivots" / f"{name}.onnx")
        real, rounded = outputs(tmp_path / f"{name}.onnx", feeds), outputs(tmp_path / "pivots" / f"{name}.onnx", feeds)
        error[name] = float(np.square(rounded - real).sum())
        energy += float(np.square(real).sum())
    assert min(error.values()) > 0.0
    for name, other in (("first", "second"), ("second", "first")):
        assert found.alone[name].noise == pytest.approx(error[name] / energy, rel=1e-6)
        assert found.all_but[name].noise == pytest.approx(error[other] / energy, rel=1e-6)
    assert found.everything.noise == pytest.approx(sum(error.values()) / energy, rel=1e-6)
    assert found.everything.score < found.alone["first"].score < 1.0
