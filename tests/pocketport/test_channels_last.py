"""Images at a graph's boundary, against onnxruntime on the graph as it was."""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from pocketport.channels_last import images_channels_last

Array = NDArray[np.float32]


def detector() -> onnx.ModelProto:
    """An image and a rank-4 mask; a picture, scores of pixels behind a reshape, and the mask's sum."""
    noise = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(noise.standard_normal((6, 3, 3, 3)).astype(np.float32), "w"),
        numpy_helper.from_array(np.array([6, -1], np.int64), "flat"),
    ]
    nodes = [
        helper.make_node("Relu", ["image"], ["positive"], name="relu"),
        helper.make_node("Conv", ["positive", "w"], ["features"], name="conv", pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["features", "features"], ["picture"], name="twice"),
        helper.make_node("Reshape", ["features", "flat"], ["scores"], name="reshape"),
        helper.make_node("Softmax", ["mask"], ["attention"], name="softmax"),
        helper.make_node("MatMul", ["attention", "attention"], ["mixed"], name="matmul"),
    ]
    graph = helper.make_graph(
        nodes, "detector",
        [_value("image", 1, 3, 8, 5), _value("mask", 1, 2, 4, 4)],
        [_value("picture", 1, 6, 8, 5), _value("scores", 6, 40), _value("mixed", 1, 2, 4, 4)],
        weights,
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def _value(name: str, *shape: int) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def run(model: onnx.ModelProto, feeds: dict[str, Array]) -> list[Array]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return list(session.run(None, feeds))


def test_only_images_turn_and_no_number_changes() -> None:
    noise = np.random.default_rng(1)
    feeds = {"image": noise.standard_normal((1, 3, 8, 5)), "mask": noise.standard_normal((1, 2, 4, 4))}
    feeds = {name: value.astype(np.float32) for name, value in feeds.items()}
    picture, scores, mixed = run(detector(), feeds)
    model = ir.from_proto(detector())
    images_channels_last(model)
    turned = ir.to_proto(model)
    onnx.checker.check_model(turned, full_check=True)
    assert [v.name for v in turned.graph.output] == ["picture", "scores", "mixed"]
    found = run(turned, {**feeds, "image": feeds["image"].transpose(0, 2, 3, 1)})
    for ours, theirs in zip(found, (picture.transpose(0, 2, 3, 1), scores, mixed), strict=True):
        np.testing.assert_array_equal(ours, theirs)
