"""Pivot → what the QNN HTP compiler reads. No number of the model changes except where a kernel's width demands it.

The compiler takes the pivot's ops as they are (Gemm with transB becomes FullyConnected, norms, Gelu and Softmax stay
whole, DequantizeLinear of 4-bit and blocked weights is folded in). Five things are rewritten:

* The boundary: QuantizeLinear at inputs and DequantizeLinear at outputs go, so that a phone moves integers (a KV cache
  of 2 bytes an element, never 4) and the accelerator computes no float. The encodings are written to ``io.json``.
  Outputs in image layout stay float.
* The second operand of a MatMul of two activations. Left at uint16, the compiler narrows it to uint8 without a
  word (48 dB where 65 dB is possible in a 1-block ViT). From v73 on it becomes int16 with zero point 0; before,
  no 16-bit kernel exists and it becomes uint8 here, in the open, with a Diagnostic.
* Gather from a quantized table gathers the integers: left alone, the table is kept in the context as float.
* Sigmoid and Tanh give the encoding that covers their whole range: the kernels know no other, and the compiler puts it
  in place of the graph's own, which a graph output (27 dB) or the next op (garbage after Tanh) then misreads.
* Rows on v69: batched MatMul of computed operands gives garbage there unless its rows are a multiple of four,
  8 at least (emulator of QAIRT 2.51: 1–7, 9, 13 rows below 3 dB; 8, 12, 16 above 40 dB). Zero rows are appended and cut off again.
"""

from dataclasses import asdict, dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import RemoveUnusedNodesPass

from pocketport.calibration.encodings import Encoding
from pocketport.compress.graph import constant, inferred, load_graph, save_graph, static_shape
from pocketport.diagnostics import Diagnostic, Severity
from pocketport.errors import InputError
from pocketport.files import write_json
from pocketport.targets.contract import CompileRequest, Lowered
from pocketport.targets.qualcomm.target import Soc, find_soc

ROW_MULTIPLE = 8
"""Rows that a batched MatMul is padded to on v69."""


@dataclass(frozen=True)
class Port:
    """A graph input or output that is an integer in the context and float32 outside."""

    dtype: str
    scale: float
    zero_point: int

    @property
    def encoding(self) -> Encoding:
        """The same as an Encoding."""
        return Encoding(self.dtype, np.float32(self.scale).reshape(()), np.int32(self.zero_point).reshape(()))


LAYOUT_OPS = frozenset(
    "AveragePool BatchNormalization Conv ConvTranspose DepthToSpace GlobalAveragePool GlobalMaxPool "
    "InstanceNormalization MaxPool Resize SpaceToDepth".split()
)
"""Ops that onnxruntime turns to NHWC for this provider; the Transposes around them wander up to a barrier."""

LAYOUT_BARRIERS = frozenset({"Reshape", "Flatten", "Gemm", "MatMul", "Gather"})

SATURATING = {
    "Sigmoid": {"uint16": Port("uint16", 2.0**-16, 0), "uint8": Port("uint8", 2.0**-8, 0)},
    "Tanh": {"uint16": Port("uint16", 2.0**-15, 32768), "uint8": Port("uint8", 2.0**-7, 128)},
}
"""Output encodings of the kernels that have but one."""


def lower(request: CompileRequest) -> Lowered:
    """Write ``<component>.onnx`` (integer boundary) and ``io.json`` into `request.work`."""
    soc = find_soc(request.target)
    model = inferred(load_graph(request.pivot))
    for value in (*model.graph.inputs, *model.graph.outputs):
        if static_shape(value) is None:
            where = f"{request.component}, {value.name}"
            raise InputError(f"its shape {value.shape} is not static", where=where, fix="fix the shape when ingesting")
    notes = widen_second_operands(model, soc, request.component)
    gather_integers(model)
    fix_saturating_outputs(model)
    if soc.arch == 69:
        pad_matmul_rows(model)
    ports = integer_boundary(model)
    blocked_gemm_to_matmul(model)
    RemoveUnusedNodesPass()(model)
    options, findings = block_options(model, request.component)
    paths = {"onnx": request.work / f"{request.component}.onnx", "io": request.work / "io.json", "options": request.work / "options.json"}
    save_graph(model, paths["onnx"])
    write_json(paths["io"], {name: asdict(port) for name, port in ports.items()})
    write_json(paths["options"], options)
    return Lowered(paths, (*notes, *findings))


def block_options(model: ir.Model, component: str) -> tuple[dict[str, str], list[Diagnostic]]:
    """Compiler options for blocked weights: integer kernels (LPBQ) if every block scale is a channel's · k/16.

    With other scales the option would round them silently, so it stays off, and the kernels compute in float16.
    """
    blocked = [n for n in model.graph if n.op_type == "DequantizeLinear" and n.attributes.get_int("block_size", 0)]
    odd = [str(node.name) for node in blocked if not _is_lpbq(node)]
    if not blocked:
        return {}, []
    if not odd:
        return {"enable_block_quant_weight_optimization": "1"}, []
    return {}, [
        Diagnostic(
            "qualcomm.float16-blocks", Severity.WARNING, f"{component}: {', '.join(odd[:4])}" + (" …" if odd[4:] else ""),
            "block scales that are no multiples of channel scale / 16 compute in float16 kernels",
            "use 4 bits per channel (w4a16), or blocks whose scales are k/16 of the channel's",
        )
    ]  # fmt: skip


def blocked_gemm_to_matmul(model: ir.Model) -> None:
    """Gemm(x, Wᵀ) with blocked weights and no bias → MatMul(x, W): the compiler has integer block kernels for that only.

    By its own estimate 19 µs against 30 for one row of 1024 × 1024, and 71 against 190 for 64 rows.
    """
    for node in [n for n in model.graph if n.op_type == "Gemm" and len(n.inputs) == 2]:
        data, weight = node.inputs
        source = None if weight is None else weight.producer()
        if source is None or data is None or not node.attributes.get_int("transB", 0) or not _is_lpbq(source):
            continue
        name = str(node.name)
        parts = [constant(value) for value in source.inputs]
        stored = [_initializer(node, f"{name}_{k}", np.ascontiguousarray(p.T)) for k, p in zip(("w", "s", "z"), parts, strict=False) if p is not None]
        block = {"axis": 0, "block_size": source.attributes.get_int("block_size", 0)}
        turned = _op(node, "DequantizeLinear", stored, f"{name}_weight", stored[0].shape.numpy(), **block)  # type: ignore[union-attr]
        product = _op(node, "MatMul", [data, turned], f"{name}_matmul", static_shape(node.outputs[0]) or ())
        ir.convenience.replace_all_uses_with(node.outputs[0], product)
        model.graph.remove(node, safe=True)


def _is_lpbq(node: ir.Node) -> bool:
    scale = constant(node.inputs[1])
    if node.op_type != "DequantizeLinear" or scale is None or not node.attributes.get_int("block_size", 0):
        return False
    steps = 16 * scale / scale.max(axis=node.attributes.get_int("axis", 1), keepdims=True)
    return bool(np.all(np.abs(steps - np.rint(steps)) < 1e-3) and steps.min() > 0.5)


def integer_boundary(model: ir.Model) -> dict[str, Port]:
    """Make quantized inputs and outputs integers, in place; their encodings by name."""
    graph, ports = model.graph, {}
    for value in graph.inputs:
        quantizers = [node for node, _ in value.uses()]
        encodings = {_port(node) for node in quantizers if node.op_type == "QuantizeLinear"}
        port = next(iter(encodings), None)
        if port is None or len(encodings) != 1 or any(n.op_type != "QuantizeLinear" for n in quantizers):
            continue
        value.dtype = ir.DataType[port.dtype.upper()]
        for node in quantizers:
            ir.convenience.replace_all_uses_with(node.outputs[0], value)
            graph.remove(node, safe=True)
        ports[str(value.name)] = port
    for index, value in enumerate(graph.outputs):
        node = value.producer()
        port = _port(node) if node is not None and node.op_type == "DequantizeLinear" else None
        source = node.inputs[0] if node is not None else None
        if port is None or source is None or source.is_graph_output() or source.producer() is None or _may_transpose(source):
            continue
        name = str(value.name)
        graph.outputs[index] = source
        value.name, source.name = f"{name}_real", name
        source.dtype, source.shape = ir.DataType[port.dtype.upper()], value.shape
        if not value.uses():
            graph.remove(node, safe=True)  # type: ignore[arg-type]
        ports[name] = port
    return ports


def _may_transpose(value: ir.Value) -> bool:
    """Whether the compiler's change to NHWC can leave a Transpose at `value`, which it refuses on plain integers."""
    pending, seen = [value.producer()], set()
    while pending:
        node = pending.pop()
        if node is None or node in seen or node.op_type in LAYOUT_BARRIERS:
            continue
        if node.op_type in LAYOUT_OPS:
            return True
        seen.add(node)
        pending += [v.producer() for v in node.inputs if v is not None]
    return False


def widen_second_operands(model: ir.Model, soc: Soc, component: str) -> list[Diagnostic]:
    """Requantize the uint16 second operand of every MatMul of activations: int16 if the chip can, else uint8."""
    narrowed: list[str] = []
    for node in [n for n in model.graph if n.op_type == "MatMul"]:
        operand = node.inputs[1]
        source = None if operand is None else operand.producer()
        port = None if source is None or source.op_type != "DequantizeLinear" else _port(source)
        if port is None or port.dtype != "uint16" or constant(source.inputs[0]) is not None:  # type: ignore[union-attr]
            continue
        if soc.has_int16_matmul:
            reach = max(port.zero_point, 65535 - port.zero_point)
            narrow = Port("int16", float(np.float32(port.scale * reach / 32767)), 0)
        else:
            narrow = Port("uint8", float(np.float32(port.scale * 257)), round(port.zero_point / 257))
            narrowed.append(str(node.name))
        node.replace_input_with(1, _requantized(node, operand, narrow, f"{node.name}_operand"))  # type: ignore[arg-type]
    if not narrowed:
        return []
    return [
        Diagnostic(
            "qualcomm.matmul-8-bit", Severity.NOTE, f"{component}: {', '.join(narrowed)}",
            f"v{soc.arch} multiplies activations of 16 bits by 8 bits only: the second operand is uint8",
            "name a chip with v73 or later where attention needs 16 bits",
        )
    ]  # fmt: skip


def pad_matmul_rows(model: ir.Model) -> None:
    """Append zero rows to the first operand of batched MatMuls of activations, and cut them off the product."""
    for node in [n for n in model.graph if n.op_type == "MatMul"]:
        left, right = node.inputs
        shape = static_shape(left) if left is not None else None
        port = None if left is None else _port_of(left)
        product = _only_quantizer(node)
        if shape is None or port is None or product is None or right is None or _is_weight(right):
            continue
        rows, missing = shape[-2], -shape[-2] % ROW_MULTIPLE
        if not missing or int(np.prod(shape[:-2])) == 1:
            continue
        name = str(node.name)
        blank = np.full((*shape[:-2], missing, shape[-1]), port.zero_point, port.dtype)
        zeros = _dequantize(node, _initializer(node, f"{name}_rows", blank), port, f"{name}_rows")
        padded = _op(node, "Concat", [left, zeros], f"{name}_padded", (*shape[:-2], rows + missing, shape[-1]), axis=-2)
        node.replace_input_with(0, _requantized(node, padded, port, f"{name}_padded"))
        out = node.outputs[0]
        wanted = static_shape(out) or ()
        full = _op(node, "MatMul", [node.inputs[0], right], f"{name}_full", (*wanted[:-2], rows + missing, wanted[-1]))
        full = _requantized(node, full, product, f"{name}_full")
        span = [_initializer(node, f"{name}_{k}", np.array([v], np.int64)) for k, v in (("from", 0), ("to", rows), ("axis", len(shape) - 2))]
        cut = _op(node, "Slice", [full, *span], f"{name}_cut", wanted)
        ir.convenience.replace_all_uses_with(out, cut)
        model.graph.remove(node, safe=True)


def gather_integers(model: ir.Model) -> None:
    """Keep the encoding across Gather: the table's own after it (one scale), or the output's before it (several)."""
    for node in [n for n in model.graph if n.op_type == "Gather"]:
        table, out = node.inputs[0], node.outputs[0]
        source = None if table is None else table.producer()
        integers = constant(source.inputs[0]) if source is not None and source.op_type == "DequantizeLinear" else None
        target = _only_quantizer(node)
        if table is None or source is None or integers is None or target is None or (own := _port(source)) == target:
            continue
        name = str(node.name)
        if own is None:
            rounded = target.encoding.quantize(_real(source, integers)).astype(target.dtype)
            stored = _initializer(node, f"{name}_table", rounded)
            node.replace_input_with(0, _dequantize(node, stored, target, f"{name}_table"))
        else:
            quantizer = out.uses()[0].node
            quantizer.replace_input_with(0, _requantized(quantizer, out, own, f"{name}_own"))


def _real(source: ir.Node, integers: NDArray[np.generic]) -> NDArray[np.float32]:
    """What a DequantizeLinear of constants gives."""
    scale, zero = constant(source.inputs[1]), constant(source.inputs[2]) if len(source.inputs) > 2 else None
    block = source.attributes.get_int("block_size", 0)
    offset = np.zeros(scale.shape, np.int32) if zero is None else zero.astype(np.int32)  # type: ignore[union-attr]
    encoding = Encoding("int32", scale, offset, source.attributes.get_int("axis", 1), block)  # type: ignore[arg-type]
    return encoding.dequantize(integers.astype(np.int32))


def fix_saturating_outputs(model: ir.Model) -> None:
    """Quantize what Sigmoid and Tanh give by the kernels' fixed encodings, then again by the graph's own."""
    for node in [n for n in model.graph if n.op_type in SATURATING]:
        port, out = _only_quantizer(node), node.outputs[0]
        fixed = SATURATING[node.op_type].get(port.dtype if port else "")
        if fixed is None or fixed == port:
            continue
        quantizer = out.uses()[0].node
        quantizer.replace_input_with(0, _requantized(quantizer, out, fixed, f"{node.name}_fixed"))


def _is_weight(value: ir.Value) -> bool:
    node = value.producer()
    return node is None or (node.op_type == "DequantizeLinear" and constant(node.inputs[0]) is not None)


def _port(node: ir.Node) -> Port | None:
    """The per-tensor encoding of a QuantizeLinear or DequantizeLinear; None if it has none or is per channel."""
    scale = constant(node.inputs[1])
    zero = constant(node.inputs[2]) if len(node.inputs) > 2 else None
    if scale is None or zero is None or scale.size != 1:
        return None
    return Port(str(zero.dtype), float(scale.reshape(())), int(zero.reshape(())))


def _port_of(value: ir.Value) -> Port | None:
    node = value.producer()
    return None if node is None or node.op_type != "DequantizeLinear" else _port(node)


def _only_quantizer(node: ir.Node) -> Port | None:
    users = [user for user, _ in node.outputs[0].uses()]
    return _port(users[0]) if len(users) == 1 and users[0].op_type == "QuantizeLinear" else None


def _initializer(before: ir.Node, name: str, array: NDArray[np.generic]) -> ir.Value:
    value = ir.Value(name=name, const_value=ir.tensor(array, name=name))
    value.shape, value.dtype = ir.Shape(array.shape), ir.DataType.from_numpy(array.dtype)
    before.graph.register_initializer(value)  # type: ignore[union-attr]
    return value


def _op(
    before: ir.Node, op: str, inputs: list[ir.Value], name: str, shape: tuple[int, ...], dtype: str = "float", **attributes: int
) -> ir.Value:
    node = ir.node(op, inputs, attributes=attributes, name=name)
    out = node.outputs[0]
    out.name, out.shape, out.dtype = f"{name}_out", ir.Shape(shape), ir.DataType[dtype.upper()]
    before.graph.insert_before(before, node)  # type: ignore[union-attr]
    return out


def _scalars(before: ir.Node, port: Port, name: str) -> list[ir.Value]:
    return [
        _initializer(before, f"{name}_scale", np.array(port.scale, np.float32)),
        _initializer(before, f"{name}_zero_point", np.array(port.zero_point, port.dtype)),
    ]


def _requantized(before: ir.Node, value: ir.Value, port: Port, name: str) -> ir.Value:
    """QuantizeLinear and DequantizeLinear of `value`, inserted before a node."""
    scalars = _scalars(before, port, f"{name}_q")
    shape = static_shape(value) or ()
    integers = _op(before, "QuantizeLinear", [value, *scalars], f"{name}_quantize", shape, port.dtype)
    return _op(before, "DequantizeLinear", [integers, *scalars], f"{name}_dequantize", shape)


def _dequantize(before: ir.Node, integers: ir.Value, port: Port, name: str) -> ir.Value:
    return _op(before, "DequantizeLinear", [integers, *_scalars(before, port, name)], f"{name}_dequantize", static_shape(integers) or ())


