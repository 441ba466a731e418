import numpy as np
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper

from pocketport.compress.graph import shape_of
from pocketport.compress.passes.simplify import simplify

from .graphs import computed, ops

RNG = np.random.default_rng(0)


def windowed(op: str, shape: tuple[int, ...], *weights: np.ndarray, **attributes: object) -> ir.Model:
    names = [f"w{i}" for i in range(len(weights))]
    node = helper.make_node(op, ["x", *names], ["y"], name="node", **attributes)
    ends = [helper.make_tensor_value_info("x", 1, shape), helper.make_tensor_value_info("y", 1, None)]
    initializers = [numpy_helper.from_array(w.astype(np.float32), n) for w, n in zip(weights, names, strict=True)]
    graph = helper.make_graph([node], "g", ends[:1], ends[1:], initializers)
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10))


def same(model: ir.Model, shape: tuple[int, ...]) -> ir.Model:
    """The simplified graph, which must compute the same."""
    simple = simplify(model)
    x = RNG.normal(size=shape).astype(np.float32)
    np.testing.assert_allclose(computed(simple, {"x": x}), computed(model, {"x": x}), rtol=1e-5, atol=1e-6)
    return simple


LINES = {
    "conv": ("Conv", (RNG.normal(size=(6, 2, 3)), RNG.normal(size=6)), {"group": 2, "strides": [2], "pads": [2, 1], "dilations": [2]}),
    "conv, same": ("Conv", (RNG.normal(size=(5, 4, 3)),), {"auto_pad": "SAME_UPPER", "strides": [2]}),
    "transposed conv": ("ConvTranspose", (RNG.normal(size=(4, 3, 4)),), {"strides": [2], "pads": [1, 0], "output_padding": [1]}),
    "maximum": ("MaxPool", (), {"kernel_shape": [3], "strides": [2], "pads": [1, 0]}),
    "average": ("AveragePool", (), {"kernel_shape": [3], "pads": [1, 1], "count_include_pad": 1}),
}  # fmt: skip


@pytest.mark.parametrize("case", LINES)
def test_windows_over_a_line_lie_in_a_plane(case: str) -> None:
    op, weights, attributes = LINES[case]
    simple = same(windowed(op, (2, 4, 13), *weights, **attributes), (2, 4, 13))
    (node,) = [n for n in simple.graph if n.op_type == op]
    assert len(shape_of(node.outputs[0])) == 4 and node.name == "node"


def test_a_batch_norm_behind_a_line_is_folded_first() -> None:
    conv = helper.make_node("Conv", ["x", "w"], ["h"], name="conv")
    norm = helper.make_node("BatchNormalization", ["h", "g", "b", "m", "v"], ["y"])
    ends = [helper.make_tensor_value_info("x", 1, (1, 4, 9)), helper.make_tensor_value_info("y", 1, None)]
    arrays = {"w": RNG.normal(size=(3, 4, 3)), **{n: RNG.uniform(0.5, 2, 3) for n in "gbmv"}}
    tensors = [numpy_helper.from_array(a.astype(np.float32), n) for n, a in arrays.items()]
    graph = helper.make_graph([conv, norm], "g", ends[:1], ends[1:], tensors)
    model = ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10))
    assert ops(same(model, (1, 4, 9))) == {"Reshape": 2, "Conv": 1}


@pytest.mark.parametrize("size", [12, 13, 14])
@pytest.mark.parametrize("op", ["MaxPool", "AveragePool"])
def test_rounding_up_is_more_pads(op: str, size: int) -> None:
    shape = (1, 3, size, size + 1)
    model = windowed(op, shape, kernel_shape=[3, 4], strides=[2, 2], pads=[1, 0, 0, 1], ceil_mode=1)
    simple = same(model, shape)
    assert all("ceil_mode" not in node.attributes for node in simple.graph)


@pytest.mark.parametrize("kernel", [3, 20])
def test_an_average_without_pads_has_none_to_count(kernel: int) -> None:
    strides = [kernel - 1, kernel - 1]
    attributes = {"kernel_shape": [kernel, kernel], "strides": strides, "ceil_mode": 1, "count_include_pad": 1}
    simple = same(windowed("AveragePool", (1, 3, 12, 12), **attributes), (1, 3, 12, 12))
    assert set(ops(simple)) == {"AveragePool" if kernel < 12 else "GlobalAveragePool"}
    assert all("ceil_mode" not in node.attributes for node in simple.graph)


def test_an_average_that_counts_its_pads_keeps_rounding_up() -> None:
    attributes = {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1, "count_include_pad": 1}
    model = windowed("AveragePool", (1, 3, 12, 12), pads=[1, 1, 1, 1], **attributes)
    assert any("ceil_mode" in node.attributes for node in same(model, (1, 3, 12, 12)).graph)
