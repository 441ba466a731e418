"""Bias correction: the mean output of a quantized convolution is float's."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper
from small_models import bundle_of, legality

from pocketport.calibration.capture import calibrate
from pocketport.calibration.statistics import Statistics
from pocketport.compress.apply import apply_plan
from pocketport.compress.executor import OrtExecutor
from pocketport.compress.plan import make_plan
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
