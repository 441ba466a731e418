"""The small quantized graphs that the conformance suite compiles: a CNN and a transformer block.

They are made here from scratch, in whatever format a backend's legality asks for, so that the suite depends on the
pivot's definition (``docs/architecture.md``) and not on the code that makes pivots.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from pocketport.calibration.encodings import INTEGER_RANGES, Encoding, encoding_for_range
from pocketport.compress.schemes import Granularity, Scheme
from pocketport.targets.legality import Legality

OPSET = 23
IR_VERSION = 11
MOVES = frozenset({"Reshape", "Transpose", "Flatten"})  # same integers, elsewhere: the encoding is the input's
NORMS = frozenset({"LayerNormalization", "RMSNormalization"})
LINEAR = frozenset({"Conv", "Gemm"})
STORAGE = {"int4": ml_dtypes.int4, "uint4": ml_dtypes.uint4, "int2": ml_dtypes.int2, "uint2": ml_dtypes.uint2}

Arrays = Mapping[str, NDArray[np.generic]]


@dataclass(frozen=True)
class FloatGraph:
    """A float model and feeds that exercise it."""

    model: onnx.ModelProto
    feeds: Arrays


def convolutional() -> FloatGraph:
    """Conv, ReLU, a residual, pooling and a classifier: image [1, 3, 16, 16] → scores [1, 10]."""
    rng = np.random.default_rng(7)
    nodes = [
        helper.make_node("Conv", ["image", "stem.w", "stem.b"], ["stem"], name="stem", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["stem"], ["stem.relu"], name="stem.relu"),
        helper.make_node("Conv", ["stem.relu", "block.w", "block.b"], ["block"], name="block", pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["block", "stem.relu"], ["residual"], name="residual"),
        helper.make_node("GlobalAveragePool", ["residual"], ["pooled"], name="pooled"),
        helper.make_node("Flatten", ["pooled"], ["features"], name="features"),
        helper.make_node("Gemm", ["features", "head.w", "head.b"], ["scores"], name="head", transB=1),
    ]
    weights = {
        "stem.w": _weight(rng, 32, 3, 3, 3), "stem.b": _weight(rng, 32),
        "block.w": _weight(rng, 32, 32, 3, 3), "block.b": _weight(rng, 32),
        "head.w": _weight(rng, 10, 32), "head.b": _weight(rng, 10),
    }  # fmt: skip
    feeds = {"image": rng.standard_normal((1, 3, 16, 16), dtype=np.float32)}
    return FloatGraph(_model("cnn", nodes, weights, feeds, {"scores": (1, 10)}), feeds)


def transformer() -> FloatGraph:
    """One pre-norm block, 2 heads of 32: x [16, 64] → y [16, 64]."""
    rng = np.random.default_rng(11)
    rows, width, heads = 16, 64, 2
    shape = {"to_heads": (rows, heads, width // heads), "to_rows": (rows, width)}
    nodes = [
        helper.make_node("LayerNormalization", ["x", "norm1.g", "norm1.b"], ["normed1"], name="norm1", epsilon=1e-5)
    ]
    for part, perm in (("q", (1, 0, 2)), ("k", (1, 2, 0)), ("v", (1, 0, 2))):
        nodes += [
            helper.make_node("Gemm", ["normed1", f"{part}.w", f"{part}.b"], [part], name=part, transB=1),
            helper.make_node("Reshape", [part, "to_heads"], [f"{part}.split"], name=f"{part}.split"),
            helper.make_node("Transpose", [f"{part}.split"], [f"{part}.heads"], name=f"{part}.heads", perm=perm),
        ]
    nodes += [
        helper.make_node("Mul", ["q.heads", "scale"], ["q.scaled"], name="q.scaled"),
        helper.make_node("MatMul", ["q.scaled", "k.heads"], ["attention.scores"], name="attention.scores"),
        helper.make_node("Softmax", ["attention.scores"], ["attention.weights"], name="attention.weights", axis=-1),
        helper.make_node("MatMul", ["attention.weights", "v.heads"], ["mixed"], name="mixed"),
        helper.make_node("Transpose", ["mixed"], ["mixed.rows"], name="mixed.rows", perm=(1, 0, 2)),
        helper.make_node("Reshape", ["mixed.rows", "to_rows"], ["joined"], name="joined"),
        helper.make_node("Gemm", ["joined", "out.w", "out.b"], ["out"], name="out", transB=1),
        helper.make_node("Add", ["x", "out"], ["middle"], name="middle"),
        helper.make_node(
            "LayerNormalization", ["middle", "norm2.g", "norm2.b"], ["normed2"], name="norm2", epsilon=1e-5
        ),
        helper.make_node("Gemm", ["normed2", "up.w", "up.b"], ["up"], name="up", transB=1),
        helper.make_node("Gelu", ["up"], ["active"], name="active", approximate="tanh"),
        helper.make_node("Gemm", ["active", "down.w", "down.b"], ["down"], name="down", transB=1),
        helper.make_node("Add", ["middle", "down"], ["y"], name="y"),
    ]
    sizes = {"q": (64, 64), "k": (64, 64), "v": (64, 64), "out": (64, 64), "up": (128, 64), "down": (64, 128)}
    weights: dict[str, NDArray[np.generic]] = {f"{name}.w": _weight(rng, *size) for name, size in sizes.items()}
    weights |= {f"{name}.b": _weight(rng, size[0]) for name, size in sizes.items()}
    weights |= {f"norm{i}.g": (1 + 0.2 * rng.standard_normal(width)).astype(np.float32) for i in (1, 2)}
    weights |= {f"norm{i}.b": _weight(rng, width) for i in (1, 2)}
    weights |= {name: np.array(value, np.int64) for name, value in shape.items()}
    weights["scale"] = np.array((width // heads) ** -0.5, np.float32)
    feeds = {"x": rng.standard_normal((rows, width), dtype=np.float32)}
    return FloatGraph(_model("transformer", nodes, weights, feeds, {"y": (rows, width)}), feeds)


def quantize(graph: FloatGraph, scheme: Scheme, legality: Legality) -> onnx.ModelProto:
    """The pivot of a float graph: `scheme` in the integer types that `legality` names for its widths."""
    return _Quantizer(graph, scheme, legality).model()


def reference(model: onnx.ModelProto, feeds: Arrays) -> dict[str, NDArray[np.generic]]:
    """Outputs by name from onnxruntime with every optimization off: what the graph says, op by op."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(feeds)), strict=True))


def _weight(rng: np.random.Generator, *shape: int) -> NDArray[np.float32]:
    fan_in = max(int(np.prod(shape[1:])), 1)
    return rng.standard_normal(shape, dtype=np.float32) / np.float32(np.sqrt(fan_in))


def _model(
    name: str, nodes: list[onnx.NodeProto], weights: Arrays, feeds: Arrays, outputs: Mapping[str, tuple[int, ...]]
) -> onnx.ModelProto:
    infos = [helper.make_tensor_value_info(n, TensorProto.FLOAT, a.shape) for n, a in feeds.items()]
    results = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in outputs.items()]
    initializers = [numpy_helper.from_array(a, n) for n, a in weights.items()]
    graph = helper.make_graph(nodes, name, infos, results, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    onnx.checker.check_model(model)
    return model


class _Quantizer:
    """Rewrites one float model node by node; new nodes and initializers gather in the order of the old ones."""

    def __init__(self, graph: FloatGraph, scheme: Scheme, legality: Legality) -> None:
        self._graph = graph.model.graph
        self._scheme = scheme
        self._legality = legality
        self._weights = {i.name: numpy_helper.to_array(i) for i in self._graph.initializer}
        self._values = _every_value(graph)
        bits = scheme.activation_bits
        self._rule = legality.activations[str(bits)] if bits else None
        self._float = self._stays_float()
        self._encodings: dict[str, Encoding] = {}
        self._renamed: dict[str, str] = {}
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: list[onnx.TensorProto] = []

    def model(self) -> onnx.ModelProto:
        for value in self._graph.input:
            self._observe(value.name, value.name, None)
        outputs = {o.name for o in self._graph.output}
        for node in self._graph.node:
            consumed_by_relu = any(n.op_type == "Relu" and n.input[0] == node.output[0] for n in self._graph.node)
            raw = f"{node.output[0]}.float" if node.output[0] in outputs and self._rule else node.output[0]
            changed = helper.make_node(node.op_type, self._inputs(node), [raw], name=node.name)
            changed.attribute.extend(node.attribute)
            self._nodes.append(changed)
            if not consumed_by_relu:
                self._observe(node.output[0], raw, node)
        graph = helper.make_graph(
            self._nodes, self._graph.name, list(self._graph.input), list(self._graph.output), self._initializers
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)

    def _stays_float(self) -> set[str]:
        """What `float_ops` touch, and what no op of `integer_ops` reads, be it behind ops that only move data."""
        found: set[str] = set()
        integer = self._legality.integer_ops
        read_as_integers: set[str] = set()
        for node in reversed(self._graph.node):
            if node.op_type in self._legality.float_ops:
                found.update((*node.input, *node.output))
            moved = node.op_type in MOVES and node.output[0] in read_as_integers
            if not integer or node.op_type in integer or moved:
                read_as_integers.update(node.input)
        names = {name for node in self._graph.node for name in (*node.input, *node.output)}
        return found | (names - read_as_integers if integer else set())

    def _observe(self, name: str, raw: str, producer: onnx.NodeProto | None) -> None:
        """Insert QuantizeLinear → DequantizeLinear after `raw`; consumers of `name` then read the latter."""
        if self._rule is None or name in self._float:
            if raw != name:
                self._nodes[-1].output[0] = name
            return
        if producer is not None and producer.op_type in MOVES and producer.input[0] in self._encodings:
            encoding = self._encodings[producer.input[0]]
        elif producer is not None and producer.op_type == "Softmax" and self._rule.softmax is not None:
            scale, zero_point = self._rule.softmax
            encoding = Encoding(self._rule.dtype, np.array(scale, np.float32), np.array(zero_point, np.int32))
        else:
            value = self._values[name]
            encoding = encoding_for_range(value.min(), value.max(), self._rule.dtype, symmetric=self._rule.symmetric)
        self._encodings[name] = encoding
        target = name if raw != name else f"{name}.dq"
        self._renamed[name] = target
        scale_name, zero_name = self._parameters(name, encoding)
        self._nodes += [
            helper.make_node("QuantizeLinear", [raw, scale_name, zero_name], [f"{name}.q"], name=f"{name}.quantize"),
            helper.make_node(
                "DequantizeLinear", [f"{name}.q", scale_name, zero_name], [target], name=f"{name}.dequantize"
            ),
        ]

    def _inputs(self, node: onnx.NodeProto) -> list[str]:
        names = []
        for position, name in enumerate(node.input):
            value = self._weights.get(name)
            if value is None:
                names.append(self._renamed.get(name, name))
            elif value.dtype != np.float32:
                names.append(self._keep(name, value))
            elif node.op_type in LINEAR and position == 1:
                names.append(self._constant(name, value, self._weight_encoding(value)))
            elif node.op_type in LINEAR and position == 2:
                names.append(self._constant(name, value, self._bias_encoding(node)))
            elif node.op_type in NORMS:
                names.append(self._constant(name, value, self._norm_encoding(node, position, value)))
            else:
                names.append(self._constant(name, value, self._data_encoding(node, value)))
        return names

    def _weight_encoding(self, value: NDArray[np.generic]) -> Encoding | None:
        if self._scheme.weight_bits is None:
            return None
        dtype = self._legality.weights[str(self._scheme.weight_bits)].dtype
        top = INTEGER_RANGES[dtype][1]
        block = self._scheme.block if value.ndim == 2 and self._scheme.granularity is Granularity.BLOCK else 0
        if block:
            reach = np.abs(value).reshape(value.shape[0], -1, block).max(axis=2)
        else:
            reach = np.abs(value).reshape(value.shape[0], -1).max(axis=1)
        scale = (reach / top).astype(np.float32)
        return Encoding(dtype, scale, np.zeros(scale.shape, np.int32), axis=1 if block else 0, block=block)

    def _bias_encoding(self, node: onnx.NodeProto) -> Encoding | None:
        activation = self._encodings.get(node.input[0])
        weight = self._encodings.get(node.input[1])
        if activation is None or weight is None:
            return None
        per_channel = weight.scale.min(axis=1) if weight.block else weight.scale
        scale = (activation.scale * per_channel).astype(np.float32)
        return Encoding("int32", scale, np.zeros(scale.shape, np.int32), axis=0)

    def _norm_encoding(self, node: onnx.NodeProto, position: int, value: NDArray[np.generic]) -> Encoding | None:
        dtype = (self._legality.norm_scale_dtype, self._legality.norm_bias_dtype)[position - 1]
        activation = self._encodings.get(node.input[0])
        if dtype == "float" or activation is None:
            return None
        if dtype == "int32":
            scale = (activation.scale * self._encodings[node.input[1]].scale).astype(np.float32)
            return Encoding(dtype, scale, np.array(0, np.int32))
        return encoding_for_range(value.min(), value.max(), dtype, symmetric=not dtype.startswith("u"))

    def _data_encoding(self, node: onnx.NodeProto, value: NDArray[np.generic]) -> Encoding | None:
        if self._rule is None or not any(name in self._encodings for name in node.input):
            return None
        return encoding_for_range(value.min(), value.max(), self._rule.dtype, symmetric=self._rule.symmetric)

    def _constant(self, name: str, value: NDArray[np.generic], encoding: Encoding | None) -> str:
        """`value` as integers behind a DequantizeLinear, or as it is when it has no encoding."""
        if encoding is None:
            return self._keep(name, value)
        self._encodings[name] = encoding
        self._initializers.append(_integers(f"{name}.int", encoding.quantize(value.astype(np.float32)), encoding.dtype))
        inputs = [f"{name}.int", *self._parameters(name, encoding)]
        attributes = {} if encoding.axis is None else {"axis": encoding.axis}
        if encoding.block:
            attributes["block_size"] = encoding.block
        self._nodes.append(
            helper.make_node("DequantizeLinear", inputs, [f"{name}.dq"], name=f"{name}.dequantize", **attributes)
        )
        return f"{name}.dq"

    def _keep(self, name: str, value: NDArray[np.generic]) -> str:
        if all(existing.name != name for existing in self._initializers):
            self._initializers.append(numpy_helper.from_array(value, name))
        return name

    def _parameters(self, name: str, encoding: Encoding) -> tuple[str, str]:
        self._initializers.append(numpy_helper.from_array(np.asarray(encoding.scale), f"{name}.scale"))
        self._initializers.append(_integers(f"{name}.zero_point", encoding.zero_point, encoding.dtype))
        return f"{name}.scale", f"{name}.zero_point"


def _integers(name: str, values: NDArray[np.integer], dtype: str) -> onnx.TensorProto:
    return numpy_helper.from_array(values.astype(STORAGE.get(dtype) or np.dtype(dtype)), name)


def _every_value(graph: FloatGraph) -> dict[str, NDArray[np.generic]]:
    """Every activation of the float model on its feeds, by name."""
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    known = {o.name for o in model.graph.output}
    for node in model.graph.node:
        model.graph.output.extend(onnx.ValueInfoProto(name=n) for n in node.output if n not in known)
    return {**graph.feeds, **reference(model, graph.feeds)}
