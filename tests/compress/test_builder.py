import numpy as np
import onnx
import onnx_ir as ir
import pytest

from pocketport.compress.builder import OPSET, GraphBuilder
from pocketport.compress.executors.ort_executor import OrtExecutor
from pocketport.errors import ToolchainError


def linear_model(weight: np.ndarray) -> ir.Model:
    g = GraphBuilder("tiny")
    x = g.input("x", (2, 3))
    y = g.node("Gemm", [x, g.weight("proj.weight", weight)], "proj", transB=1)
    first, second = g.split_node("Split", [y, g.integers([1, 3])], "halves", ["first", "second"], axis=-1)
    g.output(g.reshape(second, (3, 2), "turned", output="out"))
    g.output(first, first=True)
    return g.finish()


def test_names_shapes_and_order_of_outputs() -> None:
    model = linear_model(np.ones((4, 3), np.float32))
    assert [v.name for v in model.graph.outputs] == ["first", "out"]
    assert [node.name for node in model.graph] == ["proj", "halves", "turned"]
    assert [tuple(v.shape) for v in model.graph.outputs] == [(2, 1), (3, 2)]
    assert model.graph.opset_imports[""] == OPSET
    onnx.checker.check_model(ir.to_proto(model), full_check=True)


def test_it_computes_what_it_says() -> None:
    rng = np.random.default_rng(0)
    weight, x = rng.normal(size=(4, 3)).astype(np.float32), rng.normal(size=(2, 3)).astype(np.float32)
    results = OrtExecutor(linear_model(weight)).run({"x": x})
    expected = x @ weight.T
    np.testing.assert_allclose(results["first"], expected[:, :1], rtol=1e-6)
    np.testing.assert_allclose(results["out"], expected[:, 1:].reshape(3, 2), rtol=1e-6)


def test_the_same_name_is_the_same_weight() -> None:
    g = GraphBuilder("shared")
    assert g.weight("w", np.zeros(2, np.float32)) is g.weight("w", np.zeros(2, np.float32))
    assert g.integers([1, -1]) is g.integers((1, -1))
    assert g.integers([]) is not g.integers([0])


def test_a_lazy_weight_is_not_read_while_building() -> None:
    def read() -> ir.Tensor:
        raise AssertionError("read")

    g = GraphBuilder("lazy")
    weight = g.weight("w", ir.LazyTensor(read, dtype=ir.DataType.FLOAT, shape=ir.Shape((4000, 3))))
    g.output(g.node("Gemm", [g.input("x", (1, 3)), weight], "proj", transB=1))
    assert tuple(g.finish().graph.outputs[0].shape) == (1, 4000)


def test_a_refused_graph_names_itself() -> None:
    g = GraphBuilder("odd")
    g.output(g.node("NoSuchOp", [g.input("x", (1,))], "odd_node", output="y"))
    model = g.finish()
    model.graph.outputs[0].shape, model.graph.outputs[0].dtype = ir.Shape([1]), ir.DataType.FLOAT
    with pytest.raises(ToolchainError, match=r"graph odd.*NoSuchOp"):
        OrtExecutor(model)
