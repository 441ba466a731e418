"""Errors of layers that are rounded one after the other: those of the sum, with what the later ones make up for."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from small_models import bundle_of, legality
from torch import Tensor

from pocketport.calibration.capture import calibrate
from pocketport.calibration.statistics import SecondMoment, Statistics
from pocketport.compress.blockwise.activations import Activations
from pocketport.compress.builder import GraphBuilder
from pocketport.compress.bundle import ModelBundle
from pocketport.compress.executors.ort_executor import Arrays
from pocketport.compress.mixed_precision.sensitivity import Inputs, Sensitivities
from pocketport.compress.mixed_precision.stream import GRADIENT, Stream
from pocketport.compress.mixed_precision.summed_inputs import Sum, SummedInputs
from pocketport.compress.mixed_precision.target import TargetLayers, target_layers
from pocketport.compress.pivot.summed_weights import SummedWeights, residuals
from pocketport.compress.recipe import Recipe

ROWS, WIDTH, PARTS, COUNT = 12, 16, 3, 8
CPU = torch.device("cpu")
NAMES = [f"w.{p}" for p in range(PARTS)]


def searched() -> tuple[ModelBundle, TargetLayers, list[Arrays]]:
    """y = tanh(Σ relu(source·Sₚ)·Wₚ)."""
    rng = np.random.default_rng(0)
    g = GraphBuilder("main")

    def layer(x: ir.Value, weight: str, name: str) -> ir.Value:
        return g.node("MatMul", [x, g.weight(weight, rng.standard_normal((WIDTH, WIDTH)).astype(np.float32))], name)

    source = g.input("source", (ROWS, WIDTH))
    total: ir.Value | None = None
    for p in range(PARTS):
        x = g.node("Relu", [layer(source, f"s.{p}", f"h.{p}")], f"x.{p}")
        y = layer(x, f"w.{p}", f"down.{p}")
        total = y if total is None else g.node("Add", [total, y], f"sum.{p}")
    assert total is not None
    g.output(g.node("Tanh", [total], "tanh", output="y"))
    feeds: list[Arrays] = [{"source": rng.standard_normal((ROWS, WIDTH)).astype(np.float32)} for _ in range(COUNT)]
    bundle = bundle_of(main=g.finish())
    base = Recipe.model_validate({"name": "t", "rules": [{"name": "h.*", "scheme": "float"}]})
    return bundle, target_layers(bundle, base, "x/y", legality(), ["w4a16", "w8a16"]), feeds


def calibrated(bundle: ModelBundle, found: TargetLayers, feeds: list[Arrays]) -> Statistics:
    hessians = {"main": sorted({name for plan in found.whole.values() for name in plan.hessians().get("main", ())})}
    return calibrate({"main": bundle["main"].graph}, (("main", f) for f in feeds), hessians=hessians)


def noise(weight: str, scheme: str) -> Tensor:
    generator = torch.Generator().manual_seed(int(weight[-1]))
    return float(scheme) * torch.randn(WIDTH, WIDTH, generator=generator)


def rounder(name: str, schemes: Sequence[str], weight: Tensor, inputs: Inputs) -> Iterator[Tensor]:
    return (weight + noise(name, scheme) for scheme in schemes)


def test_effects_are_those_of_all_weights_that_change(tmp_path: Path) -> None:
    bundle, found, feeds = searched()
    (together,) = found.sums("main", calibrated(bundle, found, feeds))
    assert sorted(together.weights) == NAMES and [s.shape for s in together.shares] == [(16, 32), (16, 16), (16, 0)]
    graph = bundle["main"].graph
    with Activations(tmp_path / "activations", 1 << 20) as activations:
        stream = Stream(lambda _: graph, iter(feeds), ["y"], activations, CPU)
        sensitivities = Sensitivities(
            dict.fromkeys(NAMES, ("1", "0.1")), rounder, stream.count, activations, sums=[together]
        )
        stream.forward()
        for sample in range(COUNT):
            activations.put(GRADIENT + "y", sample, torch.ones(ROWS, WIDTH))
        stream.backward(sensitivities.wants, sensitivities.visit, sensitivities.finish)
    weights = {n: torch.from_numpy(v.const_value.numpy()) for n, v in graph.graph.initializers.items()}  # type: ignore[union-attr]
    seen = [[(torch.from_numpy(f["source"]) @ weights[f"s.{p}"]).relu() for p in range(PARTS)] for f in feeds]
    x = [torch.cat(own).numpy() for own in zip(*seen, strict=True)]
    whole = np.concatenate(x, axis=1)
    order = [NAMES.index(name) for name in together.weights]
    assert order == sorted(range(PARTS), key=lambda p: -np.square(x[p]).mean())
    moment = SecondMoment(np.square(whole).sum(0, dtype=np.float64), len(whole), whole.T @ whole)
    left = residuals(moment, [WIDTH] * PARTS, order)
    for place, name in enumerate(NAMES):
        summed = SummedWeights(left)
        summed.rounded(place, -noise(name, "1").numpy())
        zero = np.zeros((WIDTH, WIDTH), np.float32)
        changes = [torch.from_numpy(summed.wanted(p, zero)) for p in range(PARTS)]
        changes[place] = noise(name, "1")
        effects = []
        for own in seen:
            free = [weights[n].clone().requires_grad_() for n in NAMES]
            sum(a @ w for a, w in zip(own, free, strict=True)).tanh().sum().backward()  # type: ignore[union-attr]
            effects.append(sum(float((w.grad.T * c).sum()) for w, c in zip(free, changes, strict=True)))  # type: ignore[union-attr]
        np.testing.assert_allclose(sensitivities.effects[name][0], effects, rtol=2e-3, atol=2e-3)
        np.testing.assert_allclose(sensitivities.effects[name][1] * 10, effects, rtol=2e-3, atol=2e-3)
        lost = sum(torch.from_numpy(a) @ c.T for a, c in zip(x, changes, strict=True))
        signal = torch.from_numpy(x[place]) @ weights[name]
        expected = float(lost.square().sum() / signal.square().sum())  # type: ignore[union-attr]
        assert sensitivities.errors[name]["1"]["output"] == pytest.approx(expected, rel=0.02)


def test_sums_are_searched_whole_or_as_layers_alone() -> None:
    bundle, found, feeds = searched()
    statistics = calibrated(bundle, found, feeds)
    assert found.summed and len(found.sums("main", statistics)) == 1
    few = target_layers(bundle, Recipe.model_validate({"name": "t", "rules": [
        {"name": "h.*", "scheme": "float"}, {"name": "down.1", "scheme": "float"},
    ]}), "x/y", legality(), ["w4a16", "w8a16"])  # fmt: skip
    assert [s.weights for s in few.sums("main", calibrated(bundle, few, feeds))] == [("w.0", "w.2")]
    plain = target_layers(
        bundle, Recipe.model_validate({"name": "t", "rules": [{"algorithm": "mse"}]}), "x/y", legality(), ["w4a16"]
    )
    assert not plain.summed and plain.sums("main", statistics) == []


def test_layers_wait_for_those_of_their_sum() -> None:
    x = torch.randn(4, 2, 3, generator=torch.Generator().manual_seed(0))
    g = torch.ones(2, 5)
    inputs = SummedInputs([Sum(("a", "b"), (torch.ones(3, 3), torch.zeros(3, 0)))])
    lone = torch.randn(2, 3)
    (alone,) = inputs.visited("c", lone, g)
    assert alone.unexplained is alone.inputs is lone
    for own in (x[:2], x[2:]):  # one call of the component after the other
        assert list(inputs.visited("b", own[1], g)) == []
        first, second = inputs.visited("a", own[0], g)
        assert (first.weight, second.weight) == ("a", "b")
        torch.testing.assert_close(first.unexplained, own[0] - own[1].sum(1, keepdim=True).expand(2, 3))
        torch.testing.assert_close(second.unexplained, own[1])
