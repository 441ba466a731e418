from collections import Counter

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper

from pocketport.compress.executors.ort_executor import OrtExecutor
from pocketport.compress.passes.simplify import simplify

X = np.random.default_rng(0).normal(size=(2, 6, 5, 8)).astype(np.float32) * 3


def ops(model: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph)


def run(model: ir.Model, x: np.ndarray) -> np.ndarray:
    name = model.graph.inputs[0].name
    return next(iter(OrtExecutor(model).run({name: x}).values()))


PATTERNS: dict[str, tuple[str, dict[str, int]]] = {
    "a reshape to a computed shape": (
        """shape = Shape(x)
           zero = Constant<value_ints = [0]>()
           rest = Constant<value_ints = [-1]>()
           batch = Gather(shape, zero)
           target = Concat<axis = 0>(batch, rest)
           flat = Reshape(x, target)
           y = Identity(flat)""",
        {"Reshape": 1},
    ),
    "erf gelu": (
        """c = Constant<value_float = 1.4142135>()
           one = Constant<value_float = 1.0>()
           half = Constant<value_float = 0.5>()
           scaled = Div(x, c)
           erf = Erf(scaled)
           gate = Add(erf, one)
           product = Mul(x, gate)
           y = Mul(product, half)""",
        {"Gelu": 1},
    ),
    "erf gelu, otherwise ordered": (
        """c = Constant<value_float = 0.70710678>()
           one = Constant<value_float = 1.0>()
           half = Constant<value_float = 0.5>()
           scaled = Mul(x, c)
           erf = Erf(scaled)
           gate = Add(one, erf)
           product = Mul(half, x)
           y = Mul(product, gate)""",
        {"Gelu": 1},
    ),
    "a mask that hides nothing": (
        """seen = Constant<value_float = 0.0>()
           shown = Add(seen, x)
           less = Sub(shown, seen)
           more = Sub(seen, less)
           turned = Transpose<perm = [0, 1, 3, 2]>(more)
           product = MatMul(more, turned)
           shown_product = Add(product, seen)
           y = Relu(shown_product)""",
        {"Sub": 1, "Transpose": 1, "MatMul": 1, "Relu": 1},
    ),
    "zeros that change the shape": (
        """shape = Constant<value_ints = [3, 1, 1, 1, 1]>()
           zeros = ConstantOfShape(shape)
           y = Add(zeros, x)""",
        {"Add": 1},
    ),
    "not a gelu": (
        """c = Constant<value_float = 1.5>()
           one = Constant<value_float = 1.0>()
           half = Constant<value_float = 0.5>()
           scaled = Div(x, c)
           erf = Erf(scaled)
           gate = Add(erf, one)
           product = Mul(x, gate)
           y = Mul(product, half)""",
        {"Erf": 1, "Div": 1, "Add": 1, "Mul": 2},
    ),
    "hard swish": (
        """zero = Constant<value_float = 0.0>()
           three = Constant<value_float = 3.0>()
           six = Constant<value_float = 6.0>()
           shifted = Add(x, three)
           gate = Clip(shifted, zero, six)
           product = Mul(x, gate)
           y = Div(product, six)""",
        {"HardSwish": 1},
    ),
    "hard swish, otherwise ordered": (
        """zero = Constant<value_float = 0.0>()
           three = Constant<value_float = 3.0>()
           six = Constant<value_float = 6.0>()
           shifted = Add(three, x)
           gate = Clip(shifted, zero, six)
           share = Div(gate, six)
           y = Mul(share, x)""",
        {"HardSwish": 1},
    ),
    "not a hard swish": (
        """zero = Constant<value_float = 0.0>()
           three = Constant<value_float = 3.0>()
           five = Constant<value_float = 5.0>()
           six = Constant<value_float = 6.0>()
           shifted = Add(x, three)
           gate = Clip(shifted, zero, five)
           product = Mul(x, gate)
           y = Div(product, six)""",
        {"Clip": 1, "Div": 1, "Add": 1, "Mul": 1},
    ),
    "layer norm": (
        """last = Constant<value_ints = [-1]>()
           two = Constant<value_float = 2.0>()
           epsilon = Constant<value_float = 0.00001>()
           mean = ReduceMean(x, last)
           centred = Sub(x, mean)
           square = Pow(centred, two)
           variance = ReduceMean(square, last)
           shifted = Add(variance, epsilon)
           root = Sqrt(shifted)
           y = Div(centred, root)""",
        {"LayerNormalization": 1},
    ),
    "affine layer norm": (
        """last = Constant<value_ints = [-1]>()
           epsilon = Constant<value_float = 0.00001>()
           gamma = Constant<value_floats = [1.0, 2.0, -3.0, 0.5, 1.0, 1.0, 0.25, 4.0]>()
           beta = Constant<value_floats = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]>()
           mean = ReduceMean(x, last)
           centred = Sub(x, mean)
           square = Mul(centred, centred)
           variance = ReduceMean(square, last)
           shifted = Add(epsilon, variance)
           root = Sqrt(shifted)
           normal = Div(centred, root)
           scaled = Mul(gamma, normal)
           y = Add(scaled, beta)""",
        {"LayerNormalization": 1},
    ),
    "a norm over the channels": (
        """channels = Constant<value_ints = [1]>()
           epsilon = Constant<value_float = 0.00001>()
           mean = ReduceMean(x, channels)
           centred = Sub(x, mean)
           square = Mul(centred, centred)
           variance = ReduceMean(square, channels)
           shifted = Add(variance, epsilon)
           root = Sqrt(shifted)
           y = Div(centred, root)""",
        {"ReduceMean": 2, "Sub": 1, "Mul": 1, "Add": 1, "Sqrt": 1, "Div": 1},
    ),
}


@pytest.mark.parametrize("case", PATTERNS)
def test_patterns(case: str) -> None:
    body, expected = PATTERNS[case]
    text = f'<ir_version: 10, opset_import: ["": 20]> graph (float[2,6,5,8] x) => (float y) {{ {body} }}'
    model = ir.from_proto(onnx.parser.parse_model(text))
    before = ops(model)
    simple = simplify(model)
    assert ops(simple) == expected
    assert ops(model) == before, "the given model must not change"
    assert simple.graph.outputs[0].name == "y"
    np.testing.assert_allclose(run(simple, X), run(model, X), rtol=1e-5, atol=1e-5)


def convolution_chain(op_type: str, groups: int, shared: bool) -> ir.Model:
    """A convolution without bias, then BatchNormalization, Mul by a scalar, Add per channel; perhaps a second reader."""
    rng = np.random.default_rng(1)
    channels = 8
    kernel = (channels, 6 // groups, 3, 3) if op_type == "Conv" else (6, channels // groups, 3, 3)
    x = ir.Value(name="x", shape=ir.Shape(X.shape), type=ir.TensorType(ir.DataType.FLOAT))

    def weight(name: str, array: np.ndarray) -> ir.Value:
        value = ir.Value(name=name, const_value=ir.Tensor(array.astype(np.float32), name=name))
        value.shape, value.dtype = ir.Shape(array.shape), ir.DataType.FLOAT
        return value

    vectors = [weight(n, rng.uniform(0.5, 2, channels)) for n in ("gamma", "beta", "mean", "variance")]
    weights = [
        weight("w", rng.normal(size=kernel)),
        *vectors,
        weight("s", np.array([1.7])),
        weight("b", rng.normal(size=(1, channels, 1, 1))),
    ]
    conv = ir.node(op_type, [x, weights[0]], {"group": groups}, name="conv")
    norm = ir.node("BatchNormalization", [conv.outputs[0], *vectors], {"epsilon": 1e-3}, name="norm")
    scaled = ir.node("Mul", [weights[5], norm.outputs[0]], name="scaled")
    shifted = ir.node("Add", [scaled.outputs[0], weights[6]], name="shifted")
    nodes = [conv, norm, scaled, shifted]
    if shared:
        nodes.append(ir.node("Add", [shifted.outputs[0], conv.outputs[0]], name="both"))
    for node in nodes:
        node.outputs[0].name = f"{node.name}.out"
    nodes[-1].outputs[0].dtype = ir.DataType.FLOAT
    graph = ir.Graph(
        [x], [nodes[-1].outputs[0]], nodes=nodes, initializers=weights, opset_imports={"": 20}, name="chain"
    )
    return ir.Model(graph, ir_version=10)


@pytest.mark.parametrize("op_type", ["Conv", "ConvTranspose"])
@pytest.mark.parametrize("groups", [1, 2])
def test_affine_chains_fold_into_the_convolution(op_type: str, groups: int) -> None:
    model = convolution_chain(op_type, groups, shared=False)
    simple = simplify(model)
    assert ops(simple) == {op_type: 1}
    np.testing.assert_allclose(run(simple, X), run(model, X), rtol=1e-4, atol=1e-4)


def test_a_convolution_that_others_read_is_left_alone() -> None:
    model = convolution_chain("Conv", 1, shared=True)
    simple = simplify(model)
    assert ops(simple) == {"Conv": 1, "Mul": 2, "Add": 3}
    np.testing.assert_allclose(run(simple, X), run(model, X), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("biased", [False, True])
def test_a_batch_norm_folds_into_the_linear_layer_before_it(transposed: int, biased: bool) -> None:
    """γ·(W·x + b − μ)/√(σ² + ε) + β, and a scale behind it."""
    rng = np.random.default_rng(2)
    rows, inner, channels = 5, 6, 8
    arrays = {
        "w": rng.normal(size=(channels, inner) if transposed else (inner, channels)), "b": rng.normal(size=channels),
        "gamma": rng.uniform(0.5, 2, channels), "beta": rng.normal(size=channels), "mean": rng.normal(size=channels),
        "variance": rng.uniform(0.5, 2, channels), "s": np.array(1.7),
    }  # fmt: skip
    tensors = [numpy_helper.from_array(array.astype(np.float32), name) for name, array in arrays.items()]
    inputs = ["x", "w", "b"] if biased else ["x", "w"]
    nodes = [
        helper.make_node("Gemm", inputs, ["h"], transB=transposed, alpha=0.5),
        helper.make_node("BatchNormalization", ["h", "gamma", "beta", "mean", "variance"], ["n"], epsilon=1e-3),
        helper.make_node("Mul", ["n", "s"], ["y"]),
    ]
    info = [helper.make_tensor_value_info(n, 1, [rows, size]) for n, size in (("x", inner), ("y", channels))]
    graph = helper.make_graph(nodes, "linear", info[:1], info[1:], tensors)
    model = ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10))
    x = rng.normal(size=(rows, inner)).astype(np.float32)
    simple = simplify(model)
    assert ops(simple) == {"Gemm": 1}
    np.testing.assert_allclose(run(simple, x), run(model, x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("axis", [0, 1, None])
def test_gather_elements_of_constants_folds_along_long_axes(axis: int | None) -> None:
    """As exported position tables have it: more than 64 elements on the axis, fewer indices than data on the other."""
    rng = np.random.default_rng(3)
    data, indices = rng.normal(size=(90, 80)), rng.integers(0, 80, (70, 65))
    tensors = [
        numpy_helper.from_array(data.astype(np.float32), "data"),
        numpy_helper.from_array(indices, "indices"),
    ]
    attributes = {} if axis is None else {"axis": axis}
    nodes = [
        helper.make_node("GatherElements", ["data", "indices"], ["table"], **attributes),
        helper.make_node("Add", ["x", "table"], ["y"]),
    ]
    info = [helper.make_tensor_value_info(name, 1, [70, 65]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "table", info[:1], info[1:], tensors)
    model = ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10))
    x = rng.normal(size=(70, 65)).astype(np.float32)
    simple = simplify(model)
    assert ops(simple) == {"Add": 1}
    np.testing.assert_array_equal(run(simple, x), run(model, x))
