import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from pocketport.compress.passes.simplify import simplify

from .graphs import computed, ops, parsed

X = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)


def gathered(op: str, indices: np.ndarray, data: np.ndarray = X, **attributes: int) -> ir.Model:
    """``y = op(x, indices)``."""
    node = helper.make_node(op, ["x", "i"], ["g"], **attributes)
    ends = [helper.make_tensor_value_info("x", 1, data.shape), helper.make_tensor_value_info("y", 1, None)]
    graph = helper.make_graph(
        [node, helper.make_node("Relu", ["g"], ["y"])], "g", ends[:1], ends[1:], [numpy_helper.from_array(indices, "i")]
    )
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10))


def same(model: ir.Model, data: np.ndarray = X) -> set[str]:
    """The ops of the simplified graph, which must compute the same."""
    simple = simplify(model)
    np.testing.assert_array_equal(computed(simple, {"x": data}), computed(model, {"x": data}))
    return set(ops(simple))


def test_a_grid_of_all_places_is_a_reshape() -> None:
    """As torch.export writes ``mask[batch[:, None, None, None], tokens]``."""
    places = np.stack(np.meshgrid(np.arange(2), np.arange(3), indexing="ij"), -1)[:, None]
    assert same(gathered("GatherND", places)) == {"Reshape", "Relu"}


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1 << 30), depth=st.integers(1, 3), rank=st.integers(2, 3))
def test_grids_of_any_places(seed: int, depth: int, rank: int) -> None:
    rng = np.random.default_rng(seed)
    size = rng.integers(1, 5, rank - 1)
    places = np.stack([rng.integers(-n, n, size) for n in X.shape[:depth]], -1)
    assert "GatherND" not in same(gathered("GatherND", places))


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1 << 30), axis=st.integers(-3, 2), kept=st.sets(st.integers(0, 2)), size=st.integers(1, 6))
def test_elements_by_indices_that_vary_along_some_dimensions(seed: int, axis: int, kept: set[int], size: int) -> None:
    rng = np.random.default_rng(seed)
    shape = [size if d == axis % 3 else n for d, n in enumerate(X.shape)]
    drawn = rng.integers(-X.shape[axis], X.shape[axis], [1 if d in kept else n for d, n in enumerate(shape)])
    assert "GatherElements" not in same(gathered("GatherElements", np.array(np.broadcast_to(drawn, shape)), axis=axis))


def test_elements_of_a_part_stay() -> None:
    assert "GatherElements" in same(gathered("GatherElements", np.zeros((1, 2, 4), np.int64), axis=2))


@pytest.mark.parametrize("op", ["Gather", "GatherElements"])
def test_a_table_of_equal_numbers_is_that_number(op: str) -> None:
    """As the token types of a model of one sentence, looked up by position."""
    nodes = [
        helper.make_node(op, ["table", "i"], ["t"]),
        helper.make_node("Cast", ["t"], ["f"], to=1),
        helper.make_node("Add", ["f", "x"], ["y"]),
    ]
    ends = [
        helper.make_tensor_value_info("i", 7, [6]),
        helper.make_tensor_value_info("x", 1, [6]),
        helper.make_tensor_value_info("y", 1, None),
    ]
    table = numpy_helper.from_array(np.full(9, 2, np.int64), "table")
    graph = helper.make_graph(nodes, "g", ends[:2], ends[2:], [table])
    model = ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10))
    simple = simplify(model)
    assert set(ops(simple)) == {"Add"}
    feeds = {"i": np.arange(6), "x": X.reshape(-1)[:6]}
    np.testing.assert_array_equal(computed(simple, feeds), computed(model, feeds))


def test_one_computed_place_in_a_batch_of_one() -> None:
    """As CLIP pools a text: the features of the greatest token."""
    body = """axis = Constant<value = int64[1] {1}>() batch = Constant<value = int64[1,1] {0}>()
        i = ArgMax<axis = 1, keepdims = 0>(ids) j = Unsqueeze(i, axis) at = Concat<axis = 1>(batch, j)
        g = GatherND(x, at) y = Relu(g)"""
    model = parsed("int64[1,5] ids, float[1,5,4] x", body)
    simple = simplify(model)
    assert "GatherND" not in ops(simple)
    feeds = {
        "ids": np.array([[3, 1, 9, 9, 0]]),
        "x": np.abs(np.random.default_rng(0).normal(size=(1, 5, 4))).astype(np.float32),
    }
    np.testing.assert_array_equal(computed(simple, feeds), computed(model, feeds))


def test_biases_by_relative_place_are_constants() -> None:
    """Larger than what other constants may grow to: 16 heads on 196 patches."""
    rng = np.random.default_rng(0)
    table, places = rng.normal(size=(27 * 27, 16)).astype(np.float32), rng.integers(0, 27 * 27, (196, 196))
    nodes = [
        helper.make_node("Gather", ["table", "places"], ["b"]),
        helper.make_node("Transpose", ["b"], ["t"], perm=[2, 0, 1]),
        helper.make_node("Add", ["x", "t"], ["y"]),
    ]
    ends = [helper.make_tensor_value_info(name, 1, [16, 196, 196]) for name in ("x", "y")]
    tensors = [numpy_helper.from_array(table, "table"), numpy_helper.from_array(places, "places")]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], tensors)
    model = ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10))
    assert set(ops(simplify(model))) == {"Add"}


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_all_in_order_is_a_reshape(axis: int) -> None:
    """As torch.export writes a view by strides: of ConvNeXt's mean, Qualcomm's compiler dies of the Gather."""
    size = X.shape[axis]
    assert same(gathered("Gather", np.arange(size).reshape(1, size, 1), axis=axis)) == {"Reshape", "Relu"}
    assert same(gathered("Gather", np.arange(size)[::-1].copy(), axis=axis)) == {"Gather", "Relu"}
