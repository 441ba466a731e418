"""Scaled inputs: float graphs compute what they did, factors err least when rounding is simulated, pivots gain decibels."""

import numpy as np
import onnx_ir as ir
import pytest
from small_models import bundle_of, legality

from pocketport.calibration.capture import calibrate
from pocketport.calibration.metrics import sqnr_db
from pocketport.calibration.statistics import ChannelRange, SecondMoment
from pocketport.compress.builder import GraphBuilder
from pocketport.compress.executors.ort_executor import OrtExecutor
from pocketport.compress.graph import clone_graph, constant
from pocketport.compress.pivot.apply import apply_plan
from pocketport.compress.pivot.input_scaling import (
    EXPONENTS,
    LEAST,
    MARGIN,
    Layer,
    as_layer,
    choose_factors,
    fill_factors,
    input_factors,
    insert_scaling,
    scalable_inputs,
    scale_weight,
)
from pocketport.compress.planning.plan import make_plan
from pocketport.compress.recipe import Recipe
from pocketport.errors import InputError

INTEGER = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
SPREAD = np.geomspace(0.02, 4, 8).astype(np.float32)  # of the channels: a factor of 200


def layers() -> ir.Model:
    """Every kind of layer behind every kind of producer: norm, multiplied and added constants, a curve, a residual."""
    rng = np.random.default_rng(0)

    def weight(name: str, *shape: int) -> ir.Value:
        return g.weight(name, (rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32))

    g = GraphBuilder("main")
    x = g.input("x", (1, 8, 6, 6))
    h = g.node("Conv", [x, g.weight("first.w", np.diag(SPREAD).reshape(8, 8, 1, 1))], "first")
    h = g.node("HardSwish", [h], "curve")
    h = g.node("Add", [g.node("Mul", [h, weight("gain", 1)], "times"), weight("shift", 1)], "plus")
    h = g.node(
        "Conv", [h, weight("depthwise.w", 8, 1, 3, 3), weight("depthwise.b", 8)], "depthwise", group=8, pads=[1] * 4
    )
    h = g.node("Relu", [h], "relu")
    h = g.node("Conv", [h, weight("grouped.w", 6, 4, 3, 3)], "grouped", group=2)
    h = g.node("Sigmoid", [h], "gate")
    h = g.node("ConvTranspose", [h, weight("up.w", 6, 5, 2, 2)], "up", strides=[2, 2])
    rows = g.reshape(g.node("Abs", [h], "abs"), (40, 8), "rows")
    normal = g.node(
        "LayerNormalization", [rows, g.weight("norm.gain", SPREAD), weight("norm.shift", 8)], "norm", axis=-1
    )
    hidden = g.node(
        "Gelu",
        [g.node("Gemm", [normal, weight("up_proj.w", 12, 8), weight("up_proj.b", 12)], "up_proj", transB=1)],
        "gelu",
    )
    down = g.node("MatMul", [hidden, weight("down_proj.w", 12, 8)], "down_proj")
    g.output(g.node("Add", [down, rows], "sum", output="y"))
    return g.finish()


def feeds(count: int, seed: int = 1) -> list[tuple[str, dict[str, np.ndarray]]]:
    rng = np.random.default_rng(seed)
    return [("main", {"x": rng.standard_normal((1, 8, 6, 6)).astype(np.float32)}) for _ in range(count)]


def test_the_float_graph_computes_the_same() -> None:
    graph = layers()
    expected = OrtExecutor(graph).run(feeds(1)[0][1])["y"]
    scaled = clone_graph(graph)
    inputs = scalable_inputs(scaled, lambda node: True, INTEGER)
    assert set(inputs) == {"plus", "relu", "gate", "norm", "gelu"}  # not the graph's own input
    rng = np.random.default_rng(2)
    for name, source in insert_scaling(scaled, inputs).items():
        (node,) = inputs[source]
        weight = node.inputs[1]
        assert weight is not None
        real = np.asarray(constant(weight), np.float32)
        factors = rng.uniform(
            0.1, 3.0, as_layer(node, real, 127).weight.shape[0] * as_layer(node, real, 127).weight.shape[2]
        )
        weight.const_value = ir.tensor(scale_weight(node, real, factors), name=weight.name)
        fill_factors(scaled, name, factors, frozenset())
    assert sqnr_db(expected, OrtExecutor(scaled).run(feeds(1)[0][1])["y"]) > 110
    left = [node.name for node in scaled.graph if node.op_type == "Mul"]
    assert left == ["times", "relu/scaled", "gate/scaled", "gelu/scaled"]  # the norm and the constants took theirs


def test_a_tensor_that_something_else_reads_as_integers_is_left_alone() -> None:
    g = GraphBuilder("main")
    h = g.node("Relu", [g.input("x", (4, 4))], "h")
    g.output(
        g.node(
            "MatMul", [g.node("Gemm", [h, g.weight("w", np.eye(4, dtype=np.float32))], "q"), h], "scores", output="y"
        )
    )
    assert not scalable_inputs(g.finish(), lambda node: True, INTEGER)


@pytest.mark.parametrize("levels", [127, 7])
@pytest.mark.parametrize("seed", range(3))
def test_factors_err_little_more_than_the_best_exponent(levels: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((400, 24)) * np.geomspace(0.05, 5, 24)
    weight = (rng.standard_normal((16, 24)) * rng.uniform(0.2, 2, 24)).astype(np.float32)

    def noise(factors: np.ndarray) -> float:
        """Round both as QuantizeLinear does, input by one scale, weight by one a row."""
        u, w = x / factors, weight * factors
        step = (u.max() - u.min()) / 255
        zero = np.rint(-u.min() / step)
        u = (np.clip(np.rint(u / step) + zero, 0, 255) - zero) * step
        steps = np.abs(w).max(axis=1, keepdims=True) / levels
        return float(np.square(u @ (np.rint(w / steps) * steps).T - x @ weight.T).sum())

    channels = ChannelRange(x.min(axis=0).astype(np.float32), x.max(axis=0).astype(np.float32))
    factors = choose_factors(channels, np.square(x).mean(axis=0), [Layer(weight.reshape(1, 16, 24, 1), levels)])
    reach = (channels.high - channels.low) / (channels.high - channels.low).max()
    best = min(noise(np.maximum(reach, LEAST) ** exponent) for exponent in EXPONENTS)
    assert noise(factors) < 1.3 * best
    assert noise(factors) <= (0.5 if levels == 127 else 1.0) * noise(np.ones(24))


def test_pivots_gain_and_statistics_are_those_of_the_scaled_inputs() -> None:
    bundle = bundle_of(main=layers())
    graphs = {c.name: c.graph for c in bundle}
    recipe = Recipe.model_validate({"name": "t", "rules": [{"scheme": "w8a8"}]})
    decibels = {}
    for scaled in (False, True):
        plan = make_plan(bundle, recipe, "x/y", legality(integer_ops=sorted(INTEGER), scaled_inputs=scaled))
        pivot, table = apply_plan(bundle, plan, calibrate(graphs, feeds(6)))
        runs = [
            [OrtExecutor(g).run(f)["y"] for _, f in feeds(6, seed=9)]
            for g in (bundle["main"].graph, pivot["main"].graph)
        ]
        decibels[scaled] = sqnr_db(np.stack(runs[0]), np.stack(runs[1]))
    assert ("main/gelu/scaled" in table) and ("main/gelu" not in table)
    assert decibels[True] > decibels[False] + 3


def test_scaled_ranges_leave_room_for_samples_that_calibration_did_not_see() -> None:
    bundle = bundle_of(main=layers())
    recipe = Recipe.model_validate({"name": "t", "rules": [{"scheme": "w8a8"}]})
    plan = make_plan(bundle, recipe, "x/y", legality(integer_ops=sorted(INTEGER), scaled_inputs=True))
    statistics = calibrate({"main": bundle["main"].graph}, feeds(6))
    factors = input_factors(bundle, plan, statistics)["main/gelu/scaled"]
    encoding = apply_plan(bundle, plan, statistics)[1]["main/gelu/scaled"]
    seen = statistics.channels["main/gelu"]
    greatest = float(encoding.scale) * (255 - float(encoding.zero_point))
    assert greatest == pytest.approx(MARGIN * (seen.high / factors).max(), rel=0.01)
    assert greatest > 1.05 * (seen.high / factors).max()


def test_hessians_are_asked_for_and_scaled() -> None:
    bundle = bundle_of(main=layers())
    rules = [{"scheme": "w4a8", "algorithm": "gptq"}]
    recipe = Recipe.model_validate({"name": "t", "rules": rules})
    plan = make_plan(bundle, recipe, "x/y", legality(integer_ops=sorted(INTEGER), scaled_inputs=True))
    assert plan.hessians() == {"main": ["gelu", "norm", "x"]}
    statistics = calibrate({"main": bundle["main"].graph}, feeds(4), hessians=plan.hessians())
    assert isinstance(statistics.moments["main/gelu"], SecondMoment)
    pivot, _ = apply_plan(bundle, plan, statistics)
    assert np.isfinite(OrtExecutor(pivot["main"].graph).run(feeds(1)[0][1])["y"]).all()


def test_a_plan_of_another_bundle_is_an_error() -> None:
    bundle = bundle_of(main=layers())
    graphs = {c.name: c.graph for c in bundle}
    recipe = Recipe.model_validate({"name": "t", "rules": [{"scheme": "w8a8"}]})
    plan = make_plan(bundle, recipe, "x/y", legality(integer_ops=sorted(INTEGER), scaled_inputs=True))
    statistics = calibrate(graphs, feeds(2))
    pivot, _ = apply_plan(bundle, plan, statistics)
    with pytest.raises(InputError, match="has no tensor"):
        apply_plan(pivot, plan, statistics)
    statistics.channels.clear()
    with pytest.raises(InputError, match="nothing of its channels"):
        apply_plan(bundle, plan, statistics)
