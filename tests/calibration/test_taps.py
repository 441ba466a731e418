"""Tap means against onnxruntime: a convolution's mean output is its weights times what they see on average."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from pocketport.calibration.taps import Window, window_of


def convolution(weight: np.ndarray, shape: tuple[int, ...], **attributes: object) -> onnx.ModelProto:
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"], "conv", **attributes)],
        "convolution",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weight, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


@pytest.mark.parametrize(
    ("kernel", "attributes"),
    [
        ((3, 3), {"pads": [1, 1, 1, 1]}),
        ((5, 3), {"pads": [2, 0, 1, 1], "strides": [2, 1], "dilations": [1, 2]}),
        ((1, 1), {"strides": [2, 2]}),
        ((4,), {"pads": [0, 3], "strides": [3]}),
    ],
)
def test_mean_output(kernel: tuple[int, ...], attributes: dict[str, object]) -> None:
    rng = np.random.default_rng(0)
    x = rng.random((2, 4, *(9, 12)[: len(kernel)])).astype(np.float32)
    weight = rng.standard_normal((6, 4, *kernel)).astype(np.float32)
    model = convolution(weight, x.shape, **attributes)
    (y,) = ort.InferenceSession(model.SerializeToString()).run(None, {"x": x})
    window = window_of(next(iter(ir.from_proto(model).graph)))
    assert window is not None
    expected = np.asarray(y).mean(axis=(0, *range(2, 2 + len(kernel))))
    np.testing.assert_allclose(weight.reshape(6, -1) @ window.means(x).ravel(), expected, atol=1e-5)


def test_pads_that_depend_on_the_input_have_no_window() -> None:
    model = convolution(np.ones((1, 1, 3, 3), np.float32), (1, 1, 8, 8), auto_pad="SAME_UPPER")
    assert window_of(next(iter(ir.from_proto(model).graph))) is None


def test_threads_side_by_side_change_no_bit() -> None:
    rng = np.random.default_rng(0)
    cases = []
    for kernel, stride, shape in (
        ((5, 5), 1, (1, 480, 3, 80)),
        ((5, 5), 2, (1, 480, 6, 80)),
        ((3, 3), 1, (1, 64, 24, 160)),
    ):
        window = Window(kernel, (stride, 1), (1, 1), (kernel[0] // 2,) * 4)
        cases.append((window, rng.standard_normal(shape, np.float32)))
    alone = [window.means(x) for window, x in cases]
    turns = [i % len(cases) for i in range(6000)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda i: np.array_equal(cases[i][0].means(cases[i][1]), alone[i]), turns))
    assert all(together)
