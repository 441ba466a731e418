"""Products and their biases become linear layers on matrices; the untouched graph in onnxruntime is the reference."""

import math
from collections import Counter

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from small_models import bundle_of, legality

from pocketport.calibration.capture import calibrate
from pocketport.calibration.metrics import sqnr_db
from pocketport.compress.executors.ort_executor import OrtExecutor
from pocketport.compress.passes.simplify import simplify
from pocketport.compress.pivot.apply import apply_plan
from pocketport.compress.planning.plan import make_plan
from pocketport.compress.recipe import Recipe

RANDOM = np.random.default_rng(0)


class Exported:
    """A graph as exporters write it: nodes on one input x, constants as they come."""

    def __init__(self, *shape: int) -> None:
        self.x = RANDOM.standard_normal(shape).astype(np.float32)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, np.ndarray] = {}

    def constant(self, *shape: int) -> str:
        return self.given(RANDOM.standard_normal(shape) / math.sqrt(shape[0] if shape else 1))

    def given(self, array: np.ndarray) -> str:
        name = f"c{len(self.constants)}"
        self.constants[name] = array.astype(np.int64 if array.dtype == np.int64 else np.float32)
        return name

    def op(self, kind: str, *inputs: str, **attributes: object) -> str:
        name = f"{kind.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], name, **attributes))
        return name

    def shaped(self, value: str, *shape: int) -> str:
        return self.op("Reshape", value, self.given(np.array(shape, np.int64)))

    def linear(self, x: str, inner: int, outer: int, *bias: int) -> str:
        """x·W + b, the sum written one way or the other in turn."""
        operands = [self.op("MatMul", x, self.constant(inner, outer)), self.constant(*(bias or (outer,)))]
        return self.op("Add", *(operands if len(self.nodes) % 2 else operands[::-1]))

    def model(self, *outputs: str) -> ir.Model:
        graph = helper.make_graph(
            self.nodes, "exported", [helper.make_tensor_value_info("x", TensorProto.FLOAT, self.x.shape)],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
            [numpy_helper.from_array(array, name) for name, array in self.constants.items()],
        )  # fmt: skip
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=11)
        return ir.from_proto(onnx.shape_inference.infer_shapes(made))

    def simplified(self, *outputs: str) -> tuple[ir.Model, Counter[str]]:
        """The simplified graph, which computes the same, and how many nodes of each kind it has."""
        before = self.model(*outputs)
        after = simplify(before)
        found, expected = (OrtExecutor(m).run({"x": self.x}) for m in (after, before))
        assert list(found) == list(expected) == list(outputs)
        for name, array in expected.items():
            assert found[name].shape == array.shape
            np.testing.assert_allclose(found[name], array, rtol=1e-4, atol=1e-4)
        return after, Counter(node.op_type for node in after.graph)


@given(
    leading=st.lists(st.integers(1, 3), min_size=1, max_size=3), widths=st.tuples(*[st.integers(1, 5)] * 3),
    bias=st.sampled_from(["none", "scalar", "one", "vector", "row", "deep"]), between=st.sampled_from(["Gelu", "Relu", "Sum", "Scale"]),
)  # fmt: skip
def test_layers_of_every_shape(leading: list[int], widths: tuple[int, int, int], bias: str, between: str) -> None:
    inner, middle, outer = widths
    made = Exported(*leading, inner)
    shapes = {
        "none": (),
        "scalar": (),
        "one": (1,),
        "vector": (middle,),
        "row": (1, middle),
        "deep": (1,) * 4 + (middle,),
    }
    h = made.op("MatMul", "x", made.constant(inner, middle))
    if bias != "none":
        h = made.op("Add", made.constant(*shapes[bias]), h)
    if between == "Sum":
        h = made.op("Add", h, h)
    elif between == "Scale":
        h = made.op("Mul", made.constant(1, middle), h)
    else:
        h = made.op(between, h)
    graph, ops = made.simplified(made.linear(h, middle, outer))
    assert ops["Gemm"] == (1 if bias == "none" else 2) and ops["MatMul"] == (1 if bias == "none" else 0)
    images = len(leading) == 3 or bias == "deep"  # more than three dimensions
    assert ops["Reshape"] <= (4 if images else 2), "one to matrices, one back; around each layer of images"
    layers = [node for node in graph.graph if node.op_type == "Gemm"]
    assert all(node.inputs[2].shape == node.outputs[0].shape[-1:] for node in layers)


def read_twice(made: Exported) -> list[str]:
    product = made.op("MatMul", "x", made.constant(6, 8))
    return [made.op("Mul", made.op("Add", product, made.constant(8)), made.op("Sigmoid", product))]


def given_out(made: Exported) -> list[str]:
    product = made.op("MatMul", "x", made.constant(6, 8))
    return [product, made.op("Add", product, made.constant(8))]


def of_activations(made: Exported) -> list[str]:
    other = made.op("Transpose", "x", perm=[0, 2, 1])
    return [made.op("Add", made.op("MatMul", "x", other), made.constant(4))]


def by_row(made: Exported) -> list[str]:
    return [made.op("Add", made.op("MatMul", "x", made.constant(6, 8)), made.constant(4, 1))]


def computed(made: Exported) -> list[str]:
    total = made.op("ReduceMean", "x", made.given(np.array([1])), keepdims=1)
    return [made.op("Add", made.op("MatMul", "x", made.constant(6, 6)), total)]


def batched(made: Exported) -> list[str]:
    return [made.op("Add", made.op("MatMul", "x", made.constant(2, 6, 8)), made.constant(8))]


@pytest.mark.parametrize("build", [read_twice, given_out, of_activations, by_row, computed, batched])
def test_what_is_no_layer_stays(build) -> None:  # type: ignore[no-untyped-def]
    made = Exported(2, 4, 6)
    _, ops = made.simplified(*build(made))
    assert ops["MatMul"] == 1 and not ops["Gemm"] and not ops["Reshape"]


def test_a_product_with_a_vector_stays() -> None:
    made = Exported(6)
    _, ops = made.simplified(made.linear("x", 6, 8))
    assert ops == {"MatMul": 1, "Add": 1}


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("leading", [(1, 8), (2, 4)])
def test_a_transformer_stays_on_matrices(norm_first: bool, leading: tuple[int, ...]) -> None:
    """Of two blocks with attention in two heads only the heads are Reshapes, and one before and one behind it all."""
    width, heads, made = 12, 2, Exported(*leading, 12)

    def norm(x: str) -> str:
        return made.op("LayerNormalization", x, made.constant(width), made.constant(width), axis=len(leading))

    split = (math.prod(leading[:-1]), leading[-1], heads, width // heads)
    x = "x"
    for _ in range(2):
        h = norm(x) if norm_first else x
        q, k, v = (
            made.op("Transpose", made.shaped(made.linear(h, width, width), *split), perm=perm)
            for perm in ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3])
        )
        weights = made.op("Softmax", made.op("MatMul", made.op("Mul", q, made.given(np.array(0.4))), k), axis=-1)
        mixed = made.op("Transpose", made.op("MatMul", weights, v), perm=[0, 2, 1, 3])
        x = made.op("Add", made.linear(made.shaped(mixed, *leading, width), width, width), x)
        x = x if norm_first else norm(x)
        h = norm(x) if norm_first else x
        up = made.linear(h, width, 20)
        gate = made.op("Sigmoid", made.op("Mul", up, made.given(np.array([[1.7]]))))
        x = made.op("Add", x, made.linear(made.op("Mul", up, gate), 20, width))
        x = x if norm_first else norm(x)
    graph, ops = made.simplified(x)
    assert ops["Gemm"] == 12 and ops["MatMul"] == 4 and ops["Reshape"] == 2 * 4 + 2
    assert all(
        len(node.outputs[0].shape) == 2
        for node in graph.graph
        if node.op_type in ("Gemm", "LayerNormalization", "Sigmoid")
    )


def test_rows_stay_where_a_file_has_them_if_asked() -> None:
    """Layers are Gemms all the same, between Reshapes; what is computed is the same."""
    made = Exported(4, 2, 6)
    h = made.op("LayerNormalization", "x", made.constant(6), made.constant(6), axis=2)
    h = made.op("Gelu", made.linear(h, 6, 12))
    before = made.model(made.op("Add", made.linear(h, 12, 6), "x"))
    after = simplify(before, keep_rows=False)
    shapes = {node.op_type: tuple(node.outputs[0].shape) for node in after.graph if node.op_type != "Reshape"}
    assert shapes == {"LayerNormalization": (4, 2, 6), "Gelu": (4, 2, 12), "Add": (4, 2, 6), "Gemm": (8, 6)}
    found, expected = (next(iter(OrtExecutor(m).run({"x": made.x}).values())) for m in (after, before))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_images_stay_images() -> None:
    """With their channels last they have four dimensions, in which they are cut into tiles: a block as ConvNeXt's."""
    made = Exported(1, 4, 4, 6)
    h = made.op("LayerNormalization", "x", made.constant(6), made.constant(6), axis=3)
    h = made.op("Gelu", made.linear(h, 6, 12))
    graph, ops = made.simplified(made.op("Add", made.linear(h, 12, 6), "x"))
    assert ops["Gemm"] == 2 and ops["Reshape"] == 4
    assert all(len(n.outputs[0].shape) == 4 for n in graph.graph if n.op_type in ("LayerNormalization", "Gelu", "Add"))


def test_a_norm_over_other_axes_stays_where_it_is() -> None:
    made = Exported(2, 4, 6)
    h = made.linear("x", 6, 8)
    normed = made.op("LayerNormalization", h, made.constant(4, 8), axis=1)
    _, ops = made.simplified(made.linear(normed, 8, 6))
    assert ops == {"Gemm": 2, "LayerNormalization": 1, "Reshape": 4}


def test_layers_that_share_their_constants_have_biases_of_their_own() -> None:
    """As ALBERT's: one weight and one bias, read by layers whose inputs have other ranges, so their int32 biases other scales."""
    made = Exported(1, 16, 12)
    weight, bias = made.given(2 * RANDOM.standard_normal((12, 12))), made.constant(12)
    h = "x"
    for _ in range(3):
        h = made.op("Relu", made.op("Add", made.op("MatMul", h, weight), bias))
    graph, _ = made.simplified(h)
    layers = [node for node in graph.graph if node.op_type == "Gemm"]
    assert len(layers) == 3 and len({node.inputs[1] for node in layers}) == 1
    bundle = bundle_of(main=graph)
    plan = make_plan(bundle, Recipe(name="t"), "x/y", legality())
    pivot, table = apply_plan(bundle, plan, calibrate({"main": graph}, [("main", {"x": made.x})]))
    expected, found = (OrtExecutor(b["main"].graph).run({"x": made.x})[h] for b in (bundle, pivot))
    assert sqnr_db(expected, found) > 30
    assert len({float(np.max(table[f"main/{node.inputs[2].name}"].scale)) for node in layers}) == 3


def test_the_scale_of_attention_goes_into_its_projection() -> None:
    made = Exported(1, 4, 6)
    graph, ops = made.simplified(made.op("Mul", made.linear("x", 6, 8), made.given(np.array(0.125))))
    assert ops == {"Reshape": 2, "Gemm": 1}
    assert not any(node.op_type == "Mul" for node in graph.graph)


def test_a_reshape_behind_a_float_norm_gives_floats() -> None:
    """It moves what has no range, to the graph's output or to a layer, which then computes in float too."""
    made = Exported(2, 4, 6)
    h = made.op("LayerNormalization", made.linear("x", 6, 8), made.constant(8), axis=-1)
    graph, ops = made.simplified(made.linear(made.shaped(h, 8, 8), 8, 6), h)
    assert ops["Reshape"] == 2
    bundle = bundle_of(main=graph)
    plan = make_plan(
        bundle, Recipe(name="t"), "x/y", legality(float_ops=["LayerNormalization"], defaults={"main": "w8a8"})
    )
    pivot, _ = apply_plan(bundle, plan, calibrate({"main": graph}, [("main", {"x": made.x})]))
    assert next(t for t in plan["main"].tensors if t.tensor == h).dtype == "float"
    expected, found = (OrtExecutor(b["main"].graph).run({"x": made.x})[h] for b in (bundle, pivot))
    assert sqnr_db(expected, found) > 25
