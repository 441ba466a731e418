"""What a deployment adds: numbers against onnxruntime, and to which graphs it is added."""

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from pocketport.latency import predict_latency
from pocketport.profiles.prediction.deployed import (
    DEVIATION,
    MEAN,
    normalize_pictures,
    whole_normalizations,
)
from pocketport.profiles.prediction.extraction import graph_features

NOISE = np.random.default_rng(0)


def classifier(*, channels: int = 3, flat: bool = True, before: str = "", scores: int = 400) -> ir.Model:
    """[`before`,] convolution, a normalization that it does not take up, pooling, and a Flatten if `flat`."""
    arrays = {
        "w": NOISE.standard_normal((scores, channels, 3, 3)),
        "gamma": NOISE.standard_normal((scores, 1, 1)),
        "beta": NOISE.standard_normal((scores, 1, 1)),
    }
    nodes = [helper.make_node(before, ["x"], ["x0"])] if before else []
    nodes += [
        helper.make_node("Conv", ["x0" if before else "x", "w"], ["y"]),
        helper.make_node("Relu", ["y"], ["y0"]),
        helper.make_node("Mul", ["y0", "gamma"], ["y1"], name="scale"),
        helper.make_node("Add", ["y1", "beta"], ["y2"], name="shift"),
        helper.make_node("GlobalAveragePool", ["y2"], ["y3" if flat else "out"]),
    ]
    nodes += [helper.make_node("Flatten", ["y3"], ["out"])] if flat else []
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, channels, 8, 8])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, [1, scores] if flat else [1, scores, 1, 1])],
        [numpy_helper.from_array(a.astype(np.float32), n) for n, a in arrays.items()],
    )  # fmt: skip
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return ir.from_proto(onnx.shape_inference.infer_shapes(made))


def run(model: ir.Model, x: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString())
    return np.asarray(session.run(None, {"x": x})[0])


def kinds(model: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph)


def test_a_classifiers_pictures_are_normalized() -> None:
    plain, model = classifier(), classifier()
    for name, value in plain.graph.initializers.items():
        model.graph.initializers[name].const_value = value.const_value
    normalize_pictures(model)
    x = NOISE.random((1, 3, 8, 8)).astype(np.float32)
    mean, deviation = (np.array(v, np.float32).reshape(1, 3, 1, 1) for v in (MEAN, DEVIATION))
    np.testing.assert_allclose(run(model, x), run(plain, (x - mean) / deviation), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", [{"channels": 4}, {"flat": False}, {"before": "Sigmoid"}, {"scores": 63}])
def test_other_graphs_are_left_alone(options: dict) -> None:
    model = classifier(**options)
    before, features = kinds(model), graph_features(model)
    normalize_pictures(model)
    assert kinds(model) == before
    assert not any(op.op in ("Sub", "Div") for op in features.ops)


def test_features_have_the_normalization() -> None:
    """The same whether the deployment's ops are in the file already or not."""
    model = classifier()
    implied = graph_features(model)
    normalize_pictures(model)
    assert implied == graph_features(model)
    assert [op.op for op in implied.ops[:2]] == ["Sub", "Div"]


def test_a_normalization_taken_apart_is_put_together() -> None:
    model = classifier()
    x = NOISE.random((1, 3, 8, 8)).astype(np.float32)
    wanted = run(model, x)
    assert [op.op for op in graph_features(model).ops].count("BatchNormalization") == 1
    whole_normalizations(model)
    assert kinds(model)["BatchNormalization"] == 1 and not kinds(model)["Mul"] + kinds(model)["Add"]
    np.testing.assert_allclose(run(model, x), wanted, rtol=1e-4, atol=1e-5)


def test_the_report_says_what_was_put_in(tmp_path: Path) -> None:
    told = []
    for name, flat in (("classifier", True), ("map", False)):
        path = tmp_path / f"{name}.onnx"
        onnx.save(ir.to_proto(classifier(flat=flat)), path)
        report = predict_latency(path, "galaxy-s24", quick=True)
        told.append([(d.code, d.where) for d in report.diagnostics])
    assert told == [[("latency.normalized-picture", "main, input x")], []]
