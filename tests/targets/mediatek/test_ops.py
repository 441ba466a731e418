"""Every op that the legality lists, lowered and executed in LiteRT, against onnxruntime on the same graph."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from pocketport.calibration.metrics import sqnr_db
from pocketport.compress.schemes import Scheme
from pocketport.targets import conformance_graphs as graphs
from pocketport.targets.contract import Target
from pocketport.targets.mediatek import backend
from pocketport.targets.mediatek.execute import LiteRTExecutor
from pocketport.targets.mediatek.lower import lower_file

pytest.importorskip("ai_edge_litert")

LEGALITY = backend.legality(Target.parse("mediatek/mt6989"))
LEAST_DB = {"float": 100.0, "w8a16": 60.0, "w8a8": 28.0}  # 8 bits hold about 6 dB each, less a few roundings
IMAGE, ROWS = (1, 6, 9, 8), (5, 12)


class Case:
    """One op with constants; `shape` is its float input x."""

    def __init__(self, op: str, shape: Sequence[int], *constants: Any, low: float = -3.0, **attributes: Any) -> None:
        self.op, self.shape, self.low, self.attributes = op, tuple(shape), low, attributes
        self.constants = [None if c is None else np.asarray(c) for c in constants]

    @property
    def name(self) -> str:
        return "-".join([self.op, *(f"{k}={v}" for k, v in self.attributes.items())])

    def graph(self) -> graphs.FloatGraph:
        names = ["" if c is None else f"c{i}" for i, c in enumerate(self.constants)]
        node = helper.make_node(self.op, ["x", *names], ["y"], name="node", **self.attributes)
        weights = {n: c for n, c in zip(names, self.constants, strict=True) if c is not None}
        return float_graph([node], weights, {"x": sample(self.shape, self.low)})


def sample(shape: Sequence[int], low: float = -3.0) -> NDArray[np.float32]:
    return np.random.default_rng(3).uniform(low, 3.0, shape).astype(np.float32)


def weight(*shape: int) -> NDArray[np.float32]:
    return (np.random.default_rng(5).standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)


def float_graph(
    nodes: Sequence[onnx.NodeProto], weights: Mapping[str, NDArray[np.generic]], feeds: Mapping[str, Any]
) -> graphs.FloatGraph:
    inputs = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape) for n, a in feeds.items()
    ]
    initializers = [numpy_helper.from_array(a, n) for n, a in weights.items()]
    graph = helper.make_graph(list(nodes), "one", inputs, [helper.make_empty_tensor_value_info("y")], initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=11)
    model = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    return graphs.FloatGraph(model, feeds)


def executed(model: onnx.ModelProto, feeds: Mapping[str, Any], folder: Path) -> dict[str, NDArray[np.generic]]:
    onnx.save(model, folder / "pivot.onnx")
    lower_file("main", folder / "pivot.onnx", folder / "model.tflite")
    executor = LiteRTExecutor(folder / "model.tflite")
    try:
        return executor.run(feeds)
    finally:
        executor.close()


def agreement(graph: graphs.FloatGraph, scheme: str, folder: Path) -> float:
    """SQNR in dB of LiteRT against onnxruntime on the pivot (or the float graph)."""
    model = graph.model if scheme == "float" else graphs.quantize(graph, Scheme.parse(scheme), LEGALITY)
    wanted, got = graphs.reference(model, graph.feeds)["y"], executed(model, graph.feeds, folder)["y"]
    assert got.shape == wanted.shape and got.dtype == np.float32
    return 200.0 if np.array_equal(wanted, got) else sqnr_db(wanted, got)


def quantized(name: str, result: str, scale: str = "s") -> list[onnx.NodeProto]:
    """QuantizeLinear and DequantizeLinear of `name` to int16, with the scale of that name."""
    return [
        helper.make_node("QuantizeLinear", [name, scale, "z"], [f"{name}.q"]),
        helper.make_node("DequantizeLinear", [f"{name}.q", scale, "z"], [result]),
    ]


PER_CHANNEL = np.random.default_rng(9).uniform(0.5, 2.0, (6, 1, 1)).astype(np.float32)
F32 = np.float32
CASES = [
    Case("Abs", ROWS), Case("Exp", ROWS), Case("Neg", ROWS), Case("Sin", ROWS), Case("Cos", ROWS),
    Case("Sqrt", ROWS, low=0.1), Case("Log", ROWS, low=0.2),
    Case("Add", IMAGE, PER_CHANNEL), Case("Sub", IMAGE, PER_CHANNEL), Case("Mul", IMAGE, PER_CHANNEL),
    Case("Div", IMAGE, PER_CHANNEL), Case("Mul", ROWS, F32(0.125)), Case("Pow", ROWS, F32(2.0)), Case("Pow", ROWS, F32(1.5), low=0.1),
    Case("Max", ROWS, F32(0.5)), Case("Min", ROWS, F32(0.5)),
    Case("Relu", ROWS), Case("Clip", ROWS, F32(-1.0), F32(2.0)), Case("Clip", ROWS, F32(0.0), F32(6.0)), Case("Clip", ROWS, None, F32(1.0)),
    Case("LeakyRelu", ROWS, alpha=0.1), Case("Sigmoid", ROWS), Case("Tanh", ROWS), Case("HardSigmoid", ROWS), Case("HardSwish", ROWS),
    Case("Gelu", ROWS), Case("Gelu", ROWS, approximate="tanh"),
    Case("Softmax", ROWS, axis=-1), Case("Softmax", IMAGE, axis=1), Case("Softmax", (3, 200), axis=-1),
    Case("LayerNormalization", ROWS, sample((12,)), sample((12,)), axis=-1),
    Case("RMSNormalization", ROWS, sample((12,)), axis=-1, epsilon=1e-6),
    Case("DepthToSpace", (1, 12, 3, 4), blocksize=2), Case("DepthToSpace", (2, 12, 3, 4), blocksize=2, mode="CRD"),
    Case("InstanceNormalization", IMAGE, sample((6,)), sample((6,)), epsilon=1e-4),
    Case("BatchNormalization", IMAGE, *(sample((6,), 0.5) for _ in range(4))),
    Case("Identity", ROWS), Case("Cast", ROWS, to=TensorProto.FLOAT),
    Case("Reshape", ROWS, np.array([3, 20])), Case("Flatten", IMAGE), Case("Squeeze", (1, 5, 1, 4), np.array([0, 2])),
    Case("Unsqueeze", ROWS, np.array([0])), Case("Transpose", IMAGE, perm=[0, 3, 1, 2]), Case("Expand", (1, 12), np.array([5, 12])),
    Case("Slice", IMAGE, np.array([1, -6]), np.array([5, 8]), np.array([1, 3])),
    Case("Slice", IMAGE, np.array([0]), np.array([9]), np.array([2]), np.array([2])),
    Case("Pad", IMAGE, np.array([0, 0, 1, 2, 0, 0, 0, 1])), Case("Pad", ROWS, np.array([0, 1, 0, 1]), F32(1.5)),
    Case("Gather", ROWS, np.array([3, 0, 3], np.int64)), Case("Gather", ROWS, np.array([2, 7], np.int64), axis=1),
    Case("Concat", ROWS, sample((2, 12)), axis=0),
    Case("GlobalAveragePool", IMAGE), Case("ReduceMean", IMAGE, np.array([1])), Case("ReduceMean", IMAGE, np.array([2, 3]), keepdims=0),
    Case("ReduceSum", ROWS, np.array([-1])), Case("ReduceMax", ROWS, np.array([0])), Case("ReduceL2", ROWS, np.array([1]), keepdims=0),
    Case("MaxPool", IMAGE, kernel_shape=[2, 2], strides=[2, 2]), Case("MaxPool", IMAGE, kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[2, 2]),
    Case("AveragePool", IMAGE, kernel_shape=[3, 2], strides=[3, 2]),
    Case("AveragePool", IMAGE, kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1, strides=[2, 2]),
    Case("AveragePool", IMAGE, kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
    Case("Resize", IMAGE, None, None, np.array([1, 6, 18, 16]), mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor"),
    Case("Resize", IMAGE, None, None, np.array([1, 6, 27, 16]), mode="nearest"),
    Case("Resize", IMAGE, None, None, np.array([1, 6, 18, 16]), mode="linear"),
    Case("Resize", IMAGE, None, None, np.array([1, 6, 17, 15]), mode="linear", coordinate_transformation_mode="align_corners"),
    Case("Gemm", ROWS, weight(7, 12), sample((7,)), transB=1), Case("Gemm", ROWS, weight(7, 12).T.copy(), sample((7,))),
    Case("Conv", IMAGE, weight(5, 6, 3, 3), sample((5,)), pads=[1, 1, 1, 1]),
    Case("Conv", IMAGE, weight(9, 2, 3, 3), sample((9,)), group=3, pads=[1, 1, 1, 1]), Case("Conv", IMAGE, weight(4, 3, 1, 1), group=2),
    Case("Conv", IMAGE, weight(5, 6, 3, 3), sample((5,)), pads=[1, 1, 1, 1], strides=[2, 2]),
    Case("Conv", IMAGE, weight(5, 6, 3, 3), pads=[0, 1, 2, 1], strides=[2, 1]),
    Case("Conv", IMAGE, weight(5, 6, 3, 3), sample((5,)), auto_pad="SAME_LOWER", strides=[2, 2]),
    Case("Conv", IMAGE, weight(5, 6, 3, 3), sample((5,)), pads=[2, 2, 2, 2], dilations=[2, 2]),
    Case("Conv", IMAGE, weight(6, 1, 5, 5), sample((6,)), pads=[2, 2, 2, 2], group=6),
    Case("Conv", IMAGE, weight(12, 1, 3, 3), sample((12,)), strides=[2, 2], group=6),
]  # fmt: skip
FLOAT_ONLY = {"Cast", "ConvTranspose"}
CHANNELS_ELSEWHERE = [
    c for c in CASES if c.op == "Gemm" and "transB" not in c.attributes
]  # the test quantizer wants [N, K]


@pytest.mark.parametrize("case", CASES, ids=[f"{i}-{c.name}" for i, c in enumerate(CASES)])
@pytest.mark.parametrize("scheme", LEAST_DB)
def test_op_agrees_with_onnxruntime(case: Case, scheme: str, tmp_path: Path) -> None:
    if scheme != "float" and (case.op in FLOAT_ONLY or case in CHANNELS_ELSEWHERE):
        pytest.skip("float only")
    assert agreement(case.graph(), scheme, tmp_path) > LEAST_DB[scheme]


def test_every_listed_op_is_tried() -> None:
    tried = {c.op for c in CASES} | {"MatMul", "Split", "ConvTranspose", "ArgMax"}
    assert tried == set(LEGALITY.ops)


@pytest.mark.parametrize("scheme", LEAST_DB)
def test_products_of_activations_use_the_adjoint_flag(scheme: str, tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], name="t", perm=[0, 2, 1]),
        helper.make_node("MatMul", ["x", "t"], ["y"], name="y"),
    ]
    graph = float_graph(nodes, {}, {"x": sample((2, 5, 8))})
    assert agreement(graph, scheme, tmp_path) > LEAST_DB[scheme]


@pytest.mark.parametrize("sizes", [(4, 4, 4), (3, 9)])
def test_split_and_swap(sizes: tuple[int, ...], tmp_path: Path) -> None:
    parts = [f"p{i}" for i in range(len(sizes))]
    nodes = [
        *quantized("x", "xd"),
        helper.make_node("Split", ["xd", "sizes"], parts, name="split", axis=-1),
        *(node for part in parts for node in quantized(part, f"{part}d")),
        helper.make_node("Concat", [f"{part}d" for part in parts[::-1]], ["joined"], name="swapped", axis=-1),
        *quantized("joined", "y"),
    ]
    values = {"sizes": np.array(sizes), "s": np.array(3 / 32767, F32), "z": np.array(0, np.int16)}
    assert agreement(float_graph(nodes, values, {"x": sample(ROWS)}), "float", tmp_path) == 200.0


@pytest.mark.parametrize("pads", [[0, 0, 0, 0], [1, 1, 1, 0]])
@pytest.mark.parametrize("in_integers", [False, True])
def test_conv_transpose(pads: list[int], in_integers: bool, tmp_path: Path) -> None:
    kernel, x = weight(6, 4, 3, 3), sample(IMAGE)
    scale = (np.abs(kernel).max(axis=(0, 2, 3)) / 127).astype(np.float32)
    integers = np.rint(kernel / scale[:, None, None]).astype(np.int8)
    if not in_integers:
        nodes = [helper.make_node("ConvTranspose", ["x", "w", "b"], ["y"], name="up", strides=[2, 2], pads=pads)]
        graph = float_graph(nodes, {"w": kernel, "b": sample((4,))}, {"x": x})
        assert agreement(graph, "float", tmp_path) > LEAST_DB["float"]
        return
    values = {
        "sx": F32(3 / 32767),
        "sy": F32(12 / 32767),
        "z": np.int16(0),
        "w": integers,
        "sw": scale,
        "b": sample((4,)),
    }
    nodes = [
        *quantized("x", "xd", "sx"),
        helper.make_node("DequantizeLinear", ["w", "sw"], ["wd"], axis=1),
        helper.make_node("ConvTranspose", ["xd", "wd", "b"], ["up"], name="up", strides=[2, 2], pads=pads),
        *quantized("up", "y", "sy"),
    ]
    graph = float_graph(nodes, {k: np.asarray(v) for k, v in values.items()}, {"x": x})
    assert agreement(graph, "float", tmp_path) > LEAST_DB["w8a16"]


@pytest.mark.parametrize("axis", [None, 0])
def test_lookup_in_a_quantized_table(axis: int | None, tmp_path: Path) -> None:
    table = np.random.default_rng(1).integers(-127, 128, (10, 6)).astype(np.int8)
    scale = F32(0.01) if axis is None else np.linspace(0.01, 0.1, 10, dtype=np.float32)
    nodes = [
        helper.make_node("DequantizeLinear", ["table", "scale"], ["real"], **({} if axis is None else {"axis": axis})),
        helper.make_node("Gather", ["real", "x"], ["y"], name="lookup"),
    ]
    graph = float_graph(nodes, {"table": table, "scale": np.asarray(scale)}, {"x": np.array([[7, 0, 9]], np.int32)})
    assert agreement(graph, "float", tmp_path) == 200.0


@pytest.mark.parametrize("scheme", ["w8a16", "w4a16", "w8fp32", "w4cfp16", "w8a8", "float"])
@pytest.mark.parametrize("builder", [graphs.convolutional, graphs.transformer])
def test_whole_blocks(scheme: str, builder: Any, tmp_path: Path) -> None:
    graph = builder()
    model = graph.model if scheme == "float" else graphs.quantize(graph, Scheme.parse(scheme), LEGALITY)
    got, wanted = executed(model, graph.feeds, tmp_path), graphs.reference(model, graph.feeds)
    least = {"w8a16": 70.0, "w4a16": 70.0, "w8a8": 35.0}.get(scheme, 100.0)
    assert min(sqnr_db(wanted[name], got[name]) for name in wanted) > least


@pytest.mark.parametrize(("axis", "keep"), [(1, 0), (-1, 1)])
def test_the_place_of_the_greatest(axis: int, keep: int, tmp_path: Path) -> None:
    nodes = [
        helper.make_node("ArgMax", ["x"], ["i"], name="i", axis=axis, keepdims=keep),
        helper.make_node("Cast", ["i"], ["y"], name="y", to=TensorProto.FLOAT),
    ]
    assert agreement(float_graph(nodes, {}, {"x": sample(IMAGE)}), "float", tmp_path) == 200.0


def test_a_mask_made_of_integers(tmp_path: Path) -> None:
    """Comparisons as ingestion writes them: |ids − 1|, at most 1, is a flag, and so is max(ids − 3, 0)."""
    nodes = [
        helper.make_node("Sub", ["ids", "one"], ["d"]), helper.make_node("Abs", ["d"], ["a"]),
        helper.make_node("Min", ["a", "one"], ["differs"]), helper.make_node("Sub", ["ids", "three"], ["e"]),
        helper.make_node("Max", ["e", "zero"], ["p"]), helper.make_node("Min", ["p", "one"], ["exceeds"]),
        helper.make_node("Mul", ["differs", "exceeds"], ["both"]), helper.make_node("Concat", ["both", "ids"], ["all"], axis=0),
        helper.make_node("Cast", ["all"], ["f"], to=TensorProto.FLOAT), helper.make_node("Mul", ["f", "x"], ["y"]),
    ]  # fmt: skip
    numbers = {"zero": np.int32(0), "one": np.int32(1), "three": np.int32(3)}
    feeds = {"ids": np.array([[1, 5, 3, 250001, 0, -4]], np.int32), "x": sample((2, 6))}
    graph = float_graph(nodes, {n: np.asarray(v) for n, v in numbers.items()}, feeds)
    assert agreement(graph, "float", tmp_path) == 200.0
