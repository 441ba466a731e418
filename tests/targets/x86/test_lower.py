"""Lowering for onnxruntime, against the same graph run op by op."""

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from pocketport.targets.x86.lower import lower_graph


def dequantized(
    name: str, integers: NDArray[np.generic], scales: NDArray[np.float32], **attributes: int
) -> tuple[onnx.NodeProto, list[onnx.TensorProto]]:
    zeros = np.zeros(scales.shape, integers.dtype)
    arrays = {f"{name}.q": integers, f"{name}.s": scales, f"{name}.z": zeros}
    node = helper.make_node("DequantizeLinear", list(arrays), [name], name=f"{name}.dq", **attributes)
    return node, [numpy_helper.from_array(a, n) for n, a in arrays.items()]


def model(
    nodes: list[onnx.NodeProto],
    initializers: list[onnx.TensorProto],
    feeds: dict[str, NDArray[np.generic]],
    shape: tuple[int, ...],
) -> onnx.ModelProto:
    inputs = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape) for n, a in feeds.items()
    ]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)
    graph = helper.make_graph(nodes, "g", inputs, [output], initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=11)


def run(proto: onnx.ModelProto, feeds: dict[str, NDArray[np.generic]], *, optimize: bool) -> NDArray[np.float32]:
    options = onnxruntime.SessionOptions()
    level = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimize else level.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    result: NDArray[np.float32] = session.run(None, feeds)[0]
    return result


def lowered(proto: onnx.ModelProto, *, saturating: bool = False) -> tuple[onnx.ModelProto, list[str]]:
    graph = ir.from_proto(proto)
    lower_graph(graph, saturating=saturating)
    return ir.to_proto(graph), [node.op_type for node in graph.graph]


@pytest.mark.parametrize("op", ["Gemm", "MatMul"])
@pytest.mark.parametrize("block", [0, 32])
@pytest.mark.parametrize("inner", [96, 256])
def test_int4_layers_are_packed(op: str, block: int, inner: int) -> None:
    rng = np.random.default_rng(3)
    outer, rows = 24, 5
    integers = rng.integers(-8, 8, (outer, inner)).astype(ml_dtypes.int4)
    scales = rng.uniform(0.01, 0.1, (outer, inner // block) if block else (outer,)).astype(np.float32)
    if op == "MatMul":
        integers, scales = integers.T.copy(), scales.T.copy()
    axis = (1 if op == "Gemm" else 0) if block else (0 if op == "Gemm" else 1)
    attributes = {"axis": axis, **({"block_size": block} if block else {})}
    weight, initializers = dequantized("w", integers, scales, **attributes)
    feeds = {"x": rng.standard_normal((rows, inner), dtype=np.float32)}
    inputs = ["x", "w"]
    if op == "Gemm":
        initializers.append(numpy_helper.from_array(rng.standard_normal(outer, dtype=np.float32), "b"))
        inputs.append("b")
    product = helper.make_node(op, inputs, ["y"], name="linear", **({"transB": 1} if op == "Gemm" else {}))
    proto = model([weight, product], initializers, feeds, (rows, outer))
    changed, ops = lowered(proto)
    assert ops == ["MatMulNBits"]
    np.testing.assert_allclose(
        run(changed, feeds, optimize=True), run(proto, feeds, optimize=False), rtol=1e-4, atol=1e-4
    )


def test_integer_layers_and_asymmetric_weights_are_left_alone() -> None:
    rng = np.random.default_rng(4)
    integers = rng.integers(-8, 8, (8, 32)).astype(ml_dtypes.int4)
    weight, initializers = dequantized("w", integers, np.full(8, 0.1, np.float32), axis=0)
    initializers[2] = numpy_helper.from_array(np.ones(8, ml_dtypes.int4), "w.z")
    feeds = {"x": rng.standard_normal((2, 32), dtype=np.float32)}
    product = helper.make_node("Gemm", ["x", "w"], ["y"], name="linear", transB=1)
    assert lowered(model([weight, product], initializers, feeds, (2, 8)))[1] == ["DequantizeLinear", "Gemm"]

    weight, initializers = dequantized(
        "w", rng.integers(-128, 128, (8, 32)).astype(np.int8), np.full(8, 0.1, np.float32), axis=0
    )
    initializers += [numpy_helper.from_array(np.float32(0.02), "s"), numpy_helper.from_array(np.uint8(128), "z")]
    pair = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["x.q"]),
        helper.make_node("DequantizeLinear", ["x.q", "s", "z"], ["x.dq"]),
    ]
    product = helper.make_node("Gemm", ["x.dq", "w"], ["y"], name="linear", transB=1)
    kept = lowered(model([*pair, weight, product], initializers, feeds, (2, 8)))[1]
    assert kept == ["QuantizeLinear", "DequantizeLinear", "DequantizeLinear", "Gemm"]


def test_rows_are_looked_up_before_they_are_dequantized() -> None:
    rng = np.random.default_rng(5)
    table, initializers = dequantized(
        "t", rng.integers(-128, 128, (11, 6)).astype(np.int8), rng.uniform(0.1, 1, 11).astype(np.float32), axis=0
    )
    feeds = {"ids": np.array([3, 0, 10, 3], np.int32)}
    proto = model([table, helper.make_node("Gather", ["t", "ids"], ["y"], name="embed")], initializers, feeds, (4, 6))
    changed, ops = lowered(proto)
    assert ops == ["Gather", "Gather", "DequantizeLinear"]
    np.testing.assert_array_equal(run(changed, feeds, optimize=True), run(proto, feeds, optimize=False))


@pytest.mark.parametrize(("op", "shape"), [("Gemm", (12, 32)), ("MatMul", (32, 12))])
def test_eight_bit_weights_of_float_layers_fold_at_load(op: str, shape: tuple[int, int], tmp_path: Path) -> None:
    rng = np.random.default_rng(6)
    integers = rng.integers(-128, 128, shape).astype(np.int8)
    scales = rng.uniform(0.01, 0.1, 12).astype(np.float32)
    weight, initializers = dequantized("w", integers, scales, axis=shape.index(12))
    feeds = {"x": rng.standard_normal((3, 32), dtype=np.float32)}
    product = helper.make_node(op, ["x", "w"], ["y"], name="head", **({"transB": 1} if op == "Gemm" else {}))
    proto = model([weight, product], initializers, feeds, (3, 12))
    changed, ops = lowered(proto)
    assert ops == ["Cast", "Mul", op]
    np.testing.assert_allclose(
        run(changed, feeds, optimize=True), run(proto, feeds, optimize=False), rtol=1e-5, atol=1e-5
    )
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    onnxruntime.InferenceSession(changed.SerializeToString(), options, providers=["CPUExecutionProvider"])
    assert [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node] == [op]


@pytest.mark.parametrize(("quantized", "kept"), [(True, ["DequantizeLinear"] * 2), (False, ["Cast", "Mul"] * 2)])
def test_a_conv_that_does_not_end_in_integers_is_a_float_layer(quantized: bool, kept: list[str]) -> None:
    rng = np.random.default_rng(7)
    weight, initializers = dequantized(
        "w",
        rng.integers(-128, 128, (4, 3, 3, 3)).astype(np.int8),
        rng.uniform(0.01, 0.02, 4).astype(np.float32),
        axis=0,
    )
    bias, more = dequantized(
        "b", rng.integers(-1000, 1000, 4).astype(np.int32), rng.uniform(0.001, 0.002, 4).astype(np.float32), axis=0
    )
    initializers += more
    initializers += [numpy_helper.from_array(np.float32(0.05), "s"), numpy_helper.from_array(np.uint8(128), "z")]
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["x.q"]),
        helper.make_node("DequantizeLinear", ["x.q", "s", "z"], ["x.dq"]),
        weight,
        bias,
        helper.make_node("Conv", ["x.dq", "w", "b"], ["c"], name="conv"),
        helper.make_node("Relu", ["c"], ["r" if quantized else "y"], name="relu"),
    ]
    if quantized:
        nodes += [
            helper.make_node("QuantizeLinear", ["r", "s", "z"], ["r.q"]),
            helper.make_node("DequantizeLinear", ["r.q", "s", "z"], ["y"]),
        ]
    feeds = {"x": rng.standard_normal((1, 3, 8, 8), dtype=np.float32)}
    proto = model(nodes, initializers, feeds, (1, 4, 6, 6))
    changed, ops = lowered(proto)
    assert [op for op in ops[2:] if op in ("DequantizeLinear", "Cast", "Mul")][: len(kept)] == kept
    step = 0.05 if quantized else 1e-4  # integer kernels may round one step apart
    np.testing.assert_allclose(run(changed, feeds, optimize=True), run(proto, feeds, optimize=False), atol=1.01 * step)


@pytest.mark.parametrize("op", ["Gemm", "MatMul", "Conv"])
def test_large_products_do_not_saturate_without_vnni(op: str) -> None:
    rng = np.random.default_rng(9)
    shape, axis = {"Gemm": ((16, 64), 0), "MatMul": ((64, 16), 1), "Conv": ((16, 64, 1, 1), 0)}[op]
    integers = np.where(rng.random(shape) < 0.8, 127, -128).astype(np.int8)  # two of them times 255 pass 16 bits
    weight, initializers = dequantized("w", integers, rng.uniform(0.01, 0.02, 16).astype(np.float32), axis=axis)
    initializers += [numpy_helper.from_array(np.float32(v), n) for v, n in ((0.01, "s"), (0.5, "t"))]
    initializers += [numpy_helper.from_array(np.uint8(0), "z")]
    attributes = {"transB": 1} if op == "Gemm" else {}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["x.q"]),
        helper.make_node("DequantizeLinear", ["x.q", "s", "z"], ["x.dq"]),
        weight,
        helper.make_node(op, ["x.dq", "w"], ["p"], name="product", **attributes),
        helper.make_node("QuantizeLinear", ["p", "t", "z"], ["p.q"]),
        helper.make_node("DequantizeLinear", ["p.q", "t", "z"], ["y"]),
    ]
    feeds = {"x": rng.uniform(2.0, 2.55, (1, 64, 2, 2) if op == "Conv" else (4, 64)).astype(np.float32)}
    proto = model(nodes, initializers, feeds, (1, 16, 2, 2) if op == "Conv" else (4, 16))
    changed, _ = lowered(proto, saturating=True)
    kinds = {t.name: t.data_type for t in changed.graph.initializer}
    assert kinds["w.dq.raised"] == TensorProto.UINT8 and "w.q" not in kinds
    expected = run(proto, feeds, optimize=False)
    assert expected.max() > 50  # far beyond what 16 bits can sum here
    np.testing.assert_array_equal(run(changed, feeds, optimize=False), expected)
    np.testing.assert_allclose(run(changed, feeds, optimize=True), expected, atol=0.501)  # one step, at a tie
