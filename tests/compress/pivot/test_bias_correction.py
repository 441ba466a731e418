"""Bias correction: the mean output of a quantized layer is float's."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper
from small_models import bundle_of, legality

from pocketport.calibration.capture import calibrate
from pocketport.calibration.encodings import encoding_for_range
from pocketport.calibration.statistics import Statistics
from pocketport.compress.executors.ort_executor import OrtExecutor
from pocketport.compress.passes.simplify import fold
from pocketport.compress.pivot.apply import apply_plan
from pocketport.compress.pivot.bias_correction import mean_output, mean_rounding_error
from pocketport.compress.planning.plan import make_plan
from pocketport.compress.recipe import Recipe

SHAPE = (1, 6, 3, 10)


def depthwise_separable() -> ir.Model:
    """x → depthwise 5x5, padded → y: few rows, so that padding is much of what the taps see."""
    rng = np.random.default_rng(0)
    weights = {
        "w1": rng.standard_normal((6, 1, 5, 5)), "b1": rng.standard_normal(6),
        "w2": rng.standard_normal((8, 6, 1, 1)), "b2": rng.standard_normal(8),
    }  # fmt: skip
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "w1", "b1"], ["h"], "depthwise", group=6, pads=[2, 2, 2, 2]),
            helper.make_node("Relu", ["h"], ["r"], "relu"),
            helper.make_node("Conv", ["r", "w2", "b2"], ["y"], "pointwise"),
        ],
        "separable",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, SHAPE)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (1, 8, 3, 10))],
        [numpy_helper.from_array(array.astype(np.float32), name) for name, array in weights.items()],
        value_info=[helper.make_tensor_value_info(name, TensorProto.FLOAT, SHAPE) for name in ("h", "r")],
    )
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10))


@pytest.mark.parametrize("scheme", ["w4a16", "w4cfp32"])
def test_mean_output_is_that_of_float(scheme: str) -> None:
    bundle = bundle_of(main=depthwise_separable())
    feeds = [{"x": np.random.default_rng(i).random(SHAPE).astype(np.float32)} for i in range(8)]
    plan = make_plan(bundle, Recipe.model_validate({"name": "t", "rules": [{"scheme": scheme}]}), "x/y", legality())
    graphs = {"main": bundle["main"].graph}
    statistics = calibrate(graphs, (("main", f) for f in feeds), hessians=plan.hessians())

    def shift(seen: Statistics) -> float:
        pivot, _ = apply_plan(bundle, plan, seen)
        ours, reference = OrtExecutor(pivot["main"].graph), OrtExecutor(bundle["main"].graph)
        errors = [ours.run(f)["y"] - reference.run(f)["y"] for f in feeds]
        return float(np.abs(np.mean(errors, axis=(0, 1, 3, 4))).max())

    uncorrected = Statistics(statistics.histograms, statistics.moments, {}, statistics.samples)
    assert shift(statistics) < shift(uncorrected) / 3


def test_statistics_keep_the_taps(tmp_path: Path) -> None:
    graph = depthwise_separable()
    x = np.ones(SHAPE, np.float32)
    statistics = calibrate({"main": graph}, [("main", {"x": x}), ("main", {"x": x})])
    statistics.save(tmp_path / "statistics.npz")
    loaded = Statistics.load(tmp_path / "statistics.npz")
    assert set(loaded.taps) == {"main/w1", "main/w2"}
    # A row of taps of ones: each tap sees ones but for the rows and columns of padding it hangs over.
    np.testing.assert_allclose(loaded.taps["main/w1"][0, 2], 2 * np.array([0.8, 0.9, 1.0, 0.9, 0.8]), rtol=1e-6)


def test_mean_errors_are_those_of_rounding_and_not_of_chance() -> None:
    rng = np.random.default_rng(0)
    rows = rng.uniform(-1, 1, (400, 3)).astype(np.float32)
    rows[:350, 1] = 0.3333  # a background
    rows[:, 2] = -0.9
    error = mean_rounding_error(rows, encoding_for_range(-1, 1, "uint8", symmetric=False))
    step = np.float32(1 / 127)
    expected = (np.rint(rows[:, 1] / step) * step - rows[:, 1]).mean()
    assert error[0] == 0.0 and error[1] == pytest.approx(expected, rel=1e-3) and abs(error[1]) > 1e-4
    assert error[2] == pytest.approx(np.rint(np.float32(-0.9) / step) * step + 0.9, abs=1e-6)


@pytest.mark.parametrize(
    ("op", "shape", "weight", "attributes"),
    [
        ("Conv", (1, 6, 8, 8), (4, 3, 3, 3), {"group": 2}),
        ("Conv", (1, 6, 3, 8), (6, 1, 5, 3), {"group": 6, "pads": [2, 1, 2, 1], "strides": [1, 2]}),
        ("ConvTranspose", (1, 6, 8, 8), (6, 4, 2, 2), {"strides": [2, 2]}),
        ("Gemm", (5, 6), (4, 6), {"transB": 1}),
        ("MatMul", (5, 6), (6, 4), {}),
    ],
)
def test_mean_output_is_that_of_onnxruntime(
    op: str, shape: tuple[int, ...], weight: tuple[int, ...], attributes: dict[str, object]
) -> None:
    rng = np.random.default_rng(1)
    w, mean = rng.standard_normal(weight).astype(np.float32), rng.standard_normal(6).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node(op, ["x", "w"], ["y"], "layer", **attributes)], "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)], [numpy_helper.from_array(w, "w")],
    )  # fmt: skip
    model = ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10))
    x = np.broadcast_to(mean.reshape(-1, *(1,) * (len(shape) - 2)) if len(shape) > 2 else mean, shape)
    y = np.asarray(OrtExecutor(model).run({"x": np.ascontiguousarray(x)})["y"])
    expected = y.mean(axis=(0, *range(2, y.ndim)))
    np.testing.assert_allclose(mean_output(next(iter(model.graph)), w, mean.astype(np.float64)), expected, rtol=1e-4)


def test_a_background_errs_no_more(tmp_path: Path) -> None:
    """Half of every image is one value, which its 8 bits round to one side."""
    graph = depthwise_separable()
    graph.graph.outputs[:] = [next(node.outputs[0] for node in graph.graph if node.name == "depthwise")]
    bundle = bundle_of(main=fold(graph))
    feeds = [{"x": np.random.default_rng(i).random(SHAPE).astype(np.float32)} for i in range(8)]
    for feed in feeds:
        feed["x"][..., :7] = 0.4217
    recipe = Recipe.model_validate({"name": "t", "rules": [{"scheme": "w8a8"}]})
    plan = make_plan(bundle, recipe, "x/y", legality(integer_ops=["Conv"]))
    statistics = calibrate({"main": bundle["main"].graph}, [("main", f) for f in feeds], only=plan.selection())
    statistics.save(tmp_path / "statistics.npz")

    def shift(seen: Statistics) -> float:
        pivot, _ = apply_plan(bundle, plan, seen)
        ours, reference = OrtExecutor(pivot["main"].graph), OrtExecutor(bundle["main"].graph)
        errors = [ours.run(f)["h"] - reference.run(f)["h"] for f in feeds]
        return float(np.sqrt(np.square(np.mean(errors, axis=(0, 1, 3, 4))).mean()))

    corrected = shift(Statistics.load(tmp_path / "statistics.npz"))
    statistics.rows.clear()
    assert corrected < 0.6 * shift(statistics)
