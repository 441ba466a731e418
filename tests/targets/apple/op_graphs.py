"""One model that has every op the Apple lowerings take, each on an output of its own, and feeds for it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper


@dataclass
class Sampler:
    """Collects nodes; `add` gives each its own graph output."""

    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(3))
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: dict[str, onnx.TensorProto] = field(default_factory=dict)
    outputs: list[str] = field(default_factory=list)

    def weight(self, array: Any) -> str:
        array = np.asarray(array)
        name = f"w{len(self.weights)}"
        self.weights[name] = numpy_helper.from_array(array, name)
        return name

    def normal(self, *shape: int, scale: float = 0.3) -> NDArray[np.float32]:
        return (self.rng.standard_normal(shape) * scale).astype(np.float32)

    def step(self, op: str, inputs: Sequence[str], outputs: int = 1, **attributes: Any) -> list[str]:
        names = [f"{op}.{len(self.nodes)}.{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(op, list(inputs), names, name=names[0], **attributes))
        return names

    def add(self, op: str, inputs: Sequence[str], outputs: int = 1, **attributes: Any) -> None:
        self.outputs += self.step(op, inputs, outputs, **attributes)


def every_op() -> tuple[onnx.ModelProto, dict[str, NDArray[np.generic]]]:
    """The model (opset 23) and its feeds."""
    s = Sampler()
    x, image, ids = "matrix", "image", "ids"  # [6, 32], [1, 8, 12, 10], [5]
    positive = s.step("Exp", [x])[0]
    for op in (
        "Abs",
        "Cos",
        "Erf",
        "Exp",
        "HardSigmoid",
        "HardSwish",
        "LeakyRelu",
        "Neg",
        "Relu",
        "Sigmoid",
        "Sin",
        "Tanh",
        "Gelu",
    ):
        s.add(op, [x])
    s.add("Gelu", [x], approximate="tanh")
    for op in ("Log", "Sqrt", "Reciprocal"):
        s.add(op, [positive])
    for op in ("Add", "Sub", "Mul", "Div", "Max", "Min"):
        s.add(op, [x, s.weight(np.abs(s.normal(32)) + 0.5)])
    for power in (2.0, 0.5, 1.7):
        s.add("Pow", [positive, s.weight(np.float32(power))])
    for op in ("Equal", "Greater", "Less"):
        mask = s.step(op, [x, s.weight(np.float32(0.25))])[0]
        s.add("Where", [mask, x, positive])
        s.add("Cast", [mask], to=TensorProto.FLOAT)
    s.add("Cast", [ids], to=TensorProto.FLOAT)
    s.add("Clip", [x, s.weight(np.float32(-0.2)), s.weight(np.float32(0.3))])
    s.add("Clip", [x, "", s.weight(np.float32(0.1))])
    s.add("Identity", [x])
    # norms and reductions
    for op in ("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL2"):
        s.add(op, [image, s.weight(np.array([2, 3], np.int64))], keepdims=1)
        s.add(op, [x, s.weight(np.array([-1], np.int64))], keepdims=0)
    for axis, keep in ((0, 0), (1, 1)):
        s.add("Cast", [s.step("ArgMax", [x], axis=axis, keepdims=keep)[0]], to=TensorProto.FLOAT)
    s.add("Gather", [x, s.step("ArgMax", [ids], axis=0, keepdims=1)[0]], axis=1)
    s.add("GlobalAveragePool", [image])
    s.add("GlobalMaxPool", [image])
    s.add("Softmax", [x])
    s.add("Softmax", [image], axis=1)
    s.add("LayerNormalization", [x, s.weight(s.normal(32) + 1), s.weight(s.normal(32))], epsilon=1e-6)
    s.add("LayerNormalization", [x, s.weight(s.normal(32) + 1)])
    s.add("RMSNormalization", [x, s.weight(s.normal(32) + 1)], epsilon=1e-6)
    s.add("InstanceNormalization", [image, s.weight(s.normal(8) + 1), s.weight(s.normal(8))])
    statistics = [s.weight(np.abs(s.normal(8)) + 0.5) for _ in range(4)]
    s.add("BatchNormalization", [image, *statistics])
    # linear algebra
    s.add("Gemm", [x, s.weight(s.normal(16, 32)), s.weight(s.normal(16))], transB=1)
    s.add("Gemm", [x, s.weight(s.normal(32, 16))])
    s.add("MatMul", [x, s.weight(s.normal(32, 16))])
    heads = s.step("Reshape", [x, s.weight(np.array([2, 6, 16], np.int64))])[0]
    s.add("MatMul", [heads, s.step("Transpose", [heads], perm=[0, 2, 1])[0]])
    s.add("Conv", [image, s.weight(s.normal(4, 8, 3, 3)), s.weight(s.normal(4))], pads=[1, 0, 2, 1], strides=[2, 1])
    s.add("Conv", [image, s.weight(s.normal(8, 1, 3, 3))], group=8, dilations=[2, 2], pads=[2, 2, 2, 2])
    s.add("Conv", [image, s.weight(s.normal(4, 8, 3, 3))], auto_pad="SAME_UPPER", strides=[2, 2])
    s.add("ConvTranspose", [image, s.weight(s.normal(8, 4, 2, 2)), s.weight(s.normal(4))], strides=[2, 2])
    s.add("ConvTranspose", [image, s.weight(s.normal(8, 4, 3, 3))], strides=[2, 2], pads=[1, 1, 1, 1])
    s.add("MaxPool", [image], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    s.add("AveragePool", [image], kernel_shape=[3, 2], strides=[3, 2])
    s.add("AveragePool", [image], kernel_shape=[3, 3], pads=[1, 1, 1, 1])
    s.add("AveragePool", [image], kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1)
    # data movement
    s.add("Flatten", [image])
    s.add("Unsqueeze", [x, s.weight(np.array([0], np.int64))])
    s.add("Squeeze", [image, s.weight(np.array([0], np.int64))])
    s.add("Transpose", [image], perm=[0, 2, 3, 1])
    s.add("DepthToSpace", [image], blocksize=2)
    s.add("DepthToSpace", [image], blocksize=2, mode="CRD")
    s.add("Concat", [x, positive], axis=1)
    s.add("Split", [x, s.weight(np.array([8, 24], np.int64))], outputs=2, axis=-1)
    s.add("Slice", [x, *(s.weight(np.array(v, np.int64)) for v in ([1, -20], [5, 2**31], [0, 1], [2, 3]))])
    s.add("Gather", [x, ids])
    s.add("Gather", [x, ids], axis=1)
    s.add("Gather", [x, s.weight(np.array(2, np.int64))])
    s.add("Gather", [x, s.weight(np.array([3, -1], np.int64))], axis=1)
    s.add("Expand", [s.step("Slice", [x, *(s.weight(np.array(v, np.int64)) for v in ([0], [1], [0]))])[0],
                     s.weight(np.array([3, 4, 32], np.int64))])  # fmt: skip
    s.add("Pad", [image, s.weight(np.array([0, 0, 1, 2, 0, 0, 3, 0], np.int64)), s.weight(np.float32(0.5))])
    s.add("Resize", [image, "", s.weight(np.array([1, 1, 2, 3], np.float32))], mode="nearest",
          coordinate_transformation_mode="asymmetric", nearest_mode="floor")  # fmt: skip
    s.add("Resize", [image, "", s.weight(np.array([1, 1, 2, 2], np.float32))], mode="linear")
    s.add("Resize", [image, "", "", s.weight(np.array([1, 8, 5, 30], np.int64))], mode="cubic",
          coordinate_transformation_mode="align_corners")  # fmt: skip
    s.add("Resize", [image, "", "", s.weight(np.array([1, 8, 7, 10], np.int64))], mode="nearest")
    _quantized(s, x, image)
    feeds: dict[str, NDArray[np.generic]] = {
        x: s.normal(6, 32, scale=1.0), image: s.normal(1, 8, 12, 10, scale=1.0), ids: np.array([4, 0, 5, 1, 1], np.int32),
    }  # fmt: skip
    inputs = [
        helper.make_tensor_value_info(n, TensorProto.INT32 if a.dtype.kind == "i" else TensorProto.FLOAT, a.shape)
        for n, a in feeds.items()
    ]
    outputs = [helper.make_empty_tensor_value_info(name) for name in s.outputs]
    graph = helper.make_graph(s.nodes, "every_op", inputs, outputs, list(s.weights.values()))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=11)
    return onnx.shape_inference.infer_shapes(model), feeds


def _quantized(s: Sampler, x: str, image: str) -> None:
    """Weights of every format that legality lists, and 8-bit activations."""
    for dtype, reach in ((ml_dtypes.int4, 7), (np.int8, 127)):
        for scale, options in (
            (np.float32(0.01), {}),
            (np.abs(s.normal(16, scale=0.02)) + 1e-3, {"axis": 0}),
            (np.abs(s.normal(16, 2, scale=0.02)) + 1e-3, {"axis": 1, "block_size": 16}),
        ):
            integers = s.rng.integers(-reach, reach + 1, (16, 32)).astype(dtype)
            weight = s.step("DequantizeLinear", [s.weight(integers), s.weight(scale)], **options)[0]
            s.add("Gemm", [x, weight], transB=1)
        across = s.rng.integers(-reach, reach + 1, (32, 16)).astype(dtype)
        weight = s.step(
            "DequantizeLinear", [s.weight(across), s.weight(np.full((2, 16), 0.01, np.float32))], axis=0, block_size=16
        )
        s.add("MatMul", [x, weight[0]])
    kernel = s.rng.integers(-127, 128, (4, 8, 3, 3)).astype(np.int8)
    weight = s.step("DequantizeLinear", [s.weight(kernel), s.weight(np.abs(s.normal(4, scale=0.01)) + 1e-3)], axis=0)[0]
    bias = s.rng.integers(-2000, 2000, 4).astype(np.int32)
    s.add(
        "Conv",
        [
            image,
            weight,
            s.step("DequantizeLinear", [s.weight(bias), s.weight(np.full(4, 1e-3, np.float32))], axis=0)[0],
        ],
    )
    for zero_point in (np.int8(0), np.int8(-7), np.uint8(120)):
        scale = [s.weight(np.float32(0.03125)), s.weight(zero_point)]
        s.add("DequantizeLinear", [s.step("QuantizeLinear", [x, *scale])[0], *scale])
