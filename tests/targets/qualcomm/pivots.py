"""Small float graphs and a min-max quantizer that writes the pivot's form, independent of Pocketport's own."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Array = NDArray[np.generic]

UNSIGNED = {8: (TensorProto.UINT8, 255), 16: (TensorProto.UINT16, 65535)}
SIGNED = {4: (TensorProto.INT4, -8, 7), 8: (TensorProto.INT8, -128, 127)}
NUMPY = {
    TensorProto.UINT8: np.uint8,
    TensorProto.UINT16: np.uint16,
    TensorProto.INT8: np.int8,
    TensorProto.INT32: np.int32,
}


def options() -> ort.SessionOptions:
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = settings.inter_op_num_threads = 1
    settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return settings


def run_on_cpu(model: onnx.ModelProto | Path, feeds: Mapping[str, Array]) -> dict[str, Array]:
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    session = ort.InferenceSession(source, options(), providers=["CPUExecutionProvider"])
    return dict(zip([o.name for o in session.get_outputs()], session.run(None, dict(feeds)), strict=True))


def sqnr_db(reference: Array, other: Array) -> float:
    noise = float(np.square(reference - other).mean())
    return 10 * float(np.log10(float(np.square(reference).mean()) / noise)) if noise else 200.0


@dataclass
class Sketch:
    """A float graph in the making: ``sketch.op("Gemm", x, w, transB=1)`` gives the output's name."""

    opset: int = 23
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: dict[str, Array] = field(default_factory=dict)
    feeds: dict[str, Array] = field(default_factory=dict)
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))
    weight_bits: dict[str, int] = field(default_factory=dict)

    def input(self, name: str, value: Array) -> str:
        self.feeds[name] = value
        return name

    def weight(self, *shape: int, bits: int = 8, scale: float | None = None) -> str:
        name = self.constant((self.rng.standard_normal(shape) * (scale or shape[-1] ** -0.5)).astype(np.float32))
        self.weight_bits[name] = bits
        return name

    def constant(self, value: Array) -> str:
        name = f"c{len(self.initializers)}"
        self.initializers[name] = np.asarray(value)
        return name

    def shape(self, *dims: int) -> str:
        return self.constant(np.array(dims, np.int64))

    def op(self, kind: str, *inputs: str, outputs: int = 1, **attributes: object) -> str:
        name = f"{kind.lower()}_{len(self.nodes)}"
        names = [f"{name}_out{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(kind, inputs, names, name, **attributes))
        return names[0]

    def model(self, *outputs: str) -> onnx.ModelProto:
        """The float model; shapes of all tensors are filled in."""
        inputs = [
            helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape)
            for n, v in self.feeds.items()
        ]
        graph = helper.make_graph(
            self.nodes, "sketch", inputs, [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in outputs],
            [numpy_helper.from_array(v, n) for n, v in self.initializers.items()],
        )  # fmt: skip
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=11)
        return onnx.shape_inference.infer_shapes(model, data_prop=True)

    def pivot(self, *outputs: str, bits: int = 16, block: int = 0) -> onnx.ModelProto:
        return quantized(self.model(*outputs), self.feeds, bits, self.weight_bits, block)


def quantized(
    model: onnx.ModelProto, feeds: Mapping[str, Array], bits: int, weight_bits: Mapping[str, int], block: int = 0
) -> onnx.ModelProto:
    """Write every float tensor's QuantizeLinear/DequantizeLinear as the pivot has them, from one sample's ranges."""
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    kinds = {
        v.name: v.type.tensor_type.elem_type for v in [*model.graph.value_info, *model.graph.output, *model.graph.input]
    }
    known = {o.name for o in model.graph.output}
    probe.graph.output.extend(v for v in model.graph.value_info if v.name not in known)
    ranges = {**feeds, **run_on_cpu(probe, feeds)}
    constants = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}
    nodes: list[onnx.NodeProto] = []
    initializers: dict[str, onnx.TensorProto] = {}
    scales: dict[str, Array] = {}
    final = {o.name for o in model.graph.output}

    def put(name: str, value: Array, dtype: int) -> str:
        if dtype == TensorProto.INT4:
            flat = np.append(value.reshape(-1), [0] * (value.size % 2)).astype(np.int64) & 15
            raw = (flat[::2] | flat[1::2] << 4).astype(np.uint8).tobytes()
        else:
            raw = value.astype(NUMPY.get(dtype, np.float32)).tobytes()
        initializers[name] = helper.make_tensor(name, dtype, value.shape, raw, raw=True)
        return name

    def dequantize(name: str, integers: Array, dtype: int, scale: Array, zero: Array, **attributes: int) -> str:
        scales[name] = scale
        (
            put(f"{name}_int", integers, dtype),
            put(f"{name}_scale", scale, TensorProto.FLOAT),
            put(f"{name}_zp", zero, dtype),
        )
        inputs = [f"{name}_int", f"{name}_scale", f"{name}_zp"]
        nodes.append(helper.make_node("DequantizeLinear", inputs, [f"{name}_dq"], f"{name}_DQ", **attributes))
        return f"{name}_dq"

    def activation(name: str) -> None:
        dtype, top = UNSIGNED[bits]
        low, high = min(0.0, float(ranges[name].min())), max(0.0, float(ranges[name].max()))
        scale = np.float32((high - low) / top or 1.0)
        scales[name] = np.asarray(scale)
        (
            put(f"{name}_scale", np.asarray(scale), TensorProto.FLOAT),
            put(f"{name}_zp", np.asarray(round(-low / scale)), dtype),
        )
        source = f"{name}_float" if name in final else name
        quantizer, dequantized = [f"{name}_scale", f"{name}_zp"], name if name in final else f"{name}_dq"
        nodes.append(helper.make_node("QuantizeLinear", [source, *quantizer], [f"{name}_q"], f"{name}_Q"))
        nodes.append(helper.make_node("DequantizeLinear", [f"{name}_q", *quantizer], [dequantized], f"{name}_DQ"))

    def constant(name: str, node: onnx.NodeProto, position: int) -> str:
        value = constants[name]
        if value.dtype != np.float32 or node.op_type in ("Resize", "Clip"):
            initializers[name] = numpy_helper.from_array(value, name)
            return name
        if f"{name}_int" in initializers:
            return f"{name}_dq"
        linear = node.op_type in ("Gemm", "MatMul", "Conv", "ConvTranspose") and value.ndim >= 2
        if linear or (node.op_type == "Gather" and position == 0):
            dtype, low, top = SIGNED[weight_bits.get(name, 8)]
            transposed = any(a.name == "transB" and a.i for a in node.attribute)
            axis = (
                1 if node.op_type in ("MatMul", "ConvTranspose") or (node.op_type == "Gemm" and not transposed) else 0
            )
            if block and dtype == TensorProto.INT4:
                axis = 1 - axis
                cut = (*value.shape[:axis], value.shape[axis] // block, block, *value.shape[axis + 1 :])
                fine = np.abs(value.reshape(cut)).max(axis + 1, keepdims=True) / top
                unit = fine.max(axis, keepdims=True) / 16
                fine = (np.clip(np.ceil(fine / unit - 1e-4), 1, 16) * unit).astype(np.float32)
                integers = np.clip(np.rint(value.reshape(cut) / fine), low, top).reshape(value.shape)
                scale = fine.squeeze(axis + 1)
                return dequantize(name, integers, dtype, scale, np.zeros(scale.shape), axis=axis, block_size=block)
            spread = tuple(d for d in range(value.ndim) if d != axis)
            if node.op_type == "Gather":
                spread, axis = (0, 1), None  # type: ignore[assignment]
            scale = (np.abs(value).max(spread) / top).astype(np.float32)
            shaped = scale if axis is None else scale.reshape([-1 if d == axis else 1 for d in range(value.ndim)])
            integers = np.clip(np.rint(value / shaped), low, top)
            return dequantize(
                name, integers, dtype, scale, np.zeros(scale.shape), **({} if axis is None else {"axis": axis})
            )
        if position == 2 and node.op_type in ("Gemm", "Conv", "LayerNormalization"):
            weight = scales[node.input[1]]
            if weight.ndim == 2:
                weight = weight.max(1 if any(a.name == "transB" and a.i for a in node.attribute) else 0) / 16
            scale = np.asarray(scales[node.input[0]] * weight, np.float32)
            spread_by = {"axis": 0} if scale.ndim else {}
            return dequantize(
                name, np.rint(value / scale), TensorProto.INT32, scale, np.zeros(scale.shape), **spread_by
            )
        dtype, top = UNSIGNED[8 if node.op_type in ("LayerNormalization", "RMSNormalization") else bits]
        low, high = min(0.0, float(value.min())), max(0.0, float(value.max()))
        scale = np.asarray((high - low) / top or 1.0, np.float32)
        zero = np.asarray(round(-low / scale))
        return dequantize(name, np.clip(np.rint(value / scale) + zero, 0, top), dtype, scale, zero)

    for entry in model.graph.input:
        if kinds[entry.name] == TensorProto.FLOAT:
            activation(entry.name)
    for node in model.graph.node:
        inputs = [
            constant(n, node, i)
            if n in constants
            else f"{n}_dq"
            if kinds.get(n) == TensorProto.FLOAT and n not in final
            else n
            for i, n in enumerate(node.input)
        ]
        outputs = [f"{n}_float" if n in final else n for n in node.output]
        copy = helper.make_node(node.op_type, inputs, outputs, node.name, domain=node.domain)
        copy.attribute.extend(node.attribute)
        nodes.append(copy)
        for name in node.output:
            if kinds[name] == TensorProto.FLOAT:
                activation(name)
    graph = helper.make_graph(nodes, "pivot", model.graph.input, model.graph.output, list(initializers.values()))
    return helper.make_model(graph, opset_imports=model.opset_import, ir_version=11)
