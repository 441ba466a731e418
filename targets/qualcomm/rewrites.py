"""The rewrites that QNN HTP kernels demand, each in place on a pivot. See ``lower.py`` for what and when."""

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from pocketport.calibration.encodings import INTEGER_RANGES, Encoding, encoding_for_range
from pocketport.compress.graph import constant, static_shape
from pocketport.diagnostics import Diagnostic, Severity
from pocketport.targets.qualcomm.qdq import (
    Port,
    attribute,
    dequantized,
    encoding_of,
    insert,
    parameters,
    quantizer_of,
    requantized,
    store,
    stored_integers,
    stored_reals,
)
from pocketport.targets.qualcomm.target import Soc

ROW_MULTIPLE = 8
"""Rows that a batched MatMul is padded to on v69."""

LPBQ_LEVELS = 16
"""A block's scale is k / 16 of its channel's, k = 1 … 16, in low-power block quantization."""

SATURATING: Mapping[str, Mapping[str, Port]] = {
    "Sigmoid": {"uint16": Port("uint16", 2.0**-16, 0), "uint8": Port("uint8", 2.0**-8, 0)},
    "Tanh": {"uint16": Port("uint16", 2.0**-15, 32768), "uint8": Port("uint8", 2.0**-7, 128)},
}
"""Output encodings of the kernels that have but one."""


def requantize_second_operands(model: ir.Model, soc: Soc, component: str) -> list[Diagnostic]:
    """Make the uint16 second operand of every MatMul of activations int16 if the chip can, else uint8.

    Left at uint16, the compiler narrows it to uint8 without a word: 48 dB where 65 dB is possible in one ViT block.
    The int16 kernel wants zero point 0. By the compiler's own estimate it costs 5 to 14 % of a block's time.
    """
    narrowed: list[str] = []
    for node in _of_type(model, "MatMul"):
        operand = node.inputs[1]
        port = None if operand is None else encoding_of(operand)
        if operand is None or port is None or port.dtype != "uint16" or stored_integers(operand) is not None:
            continue
        if soc.has_int16_matmul:
            reach = max(port.zero_point, 65535 - port.zero_point)
            other = Port("int16", float(np.float32(port.scale * reach / 32767)), 0)
        else:
            other = Port("uint8", float(np.float32(port.scale * 257)), round(port.zero_point / 257))
            narrowed.append(str(node.name))
        node.replace_input_with(1, requantized(node, operand, other, f"{node.name}_operand"))
    if not narrowed:
        return []
    names = ", ".join(narrowed[:2]) + (f" and {len(narrowed) - 2} more" if narrowed[2:] else "")
    why = f"v{soc.arch} multiplies 16-bit activations by 8 bits only: the second operand of attention is uint8"
    fix = "name a chip with v73 or later where attention needs 16 bits"
    return [Diagnostic("qualcomm.matmul-8-bit", Severity.NOTE, f"{component}: {names}", why, fix)]


def pad_matmul_rows(model: ir.Model) -> None:
    """Append zero rows to the first operand of batched MatMuls of activations, and cut them off the product.

    On v69 such a MatMul of computed operands gives garbage unless its rows are a multiple of four, and 8 at least
    (emulator of QAIRT 2.51: 1 to 7, 9 and 13 rows below 3 dB, 8, 12 and 16 above 40 dB).
    """
    for node in _of_type(model, "MatMul"):
        left, right = node.inputs
        quantizer = quantizer_of(node)
        if left is None or right is None or quantizer is None or stored_integers(right) is not None:
            continue
        shape, wanted = static_shape(left), static_shape(node.outputs[0])
        port, product = encoding_of(left), parameters(quantizer)
        if shape is None or wanted is None or port is None or product is None:
            continue
        rows, missing, name = shape[-2], -shape[-2] % ROW_MULTIPLE, str(node.name)
        if not missing or int(np.prod(shape[:-2])) == 1:
            continue
        blank = np.full((*shape[:-2], missing, shape[-1]), port.zero_point, port.dtype)
        zeros = dequantized(node, blank, port, f"{name}_rows")
        tall = insert(
            node, "Concat", [left, zeros], f"{name}_padded", (*shape[:-2], rows + missing, shape[-1]), axis=-2
        )
        tall = requantized(node, tall, port, f"{name}_padded")
        full = insert(node, "MatMul", [tall, right], f"{name}_full", (*wanted[:-2], rows + missing, wanted[-1]))
        full = requantized(node, full, product, f"{name}_full")
        span = [
            store(node, f"{name}_{key}", np.array([at], np.int64))
            for key, at in (("from", 0), ("to", rows), ("axis", -2))
        ]
        ir.convenience.replace_all_uses_with(
            node.outputs[0], insert(node, "Slice", [full, *span], f"{name}_cut", wanted)
        )
        model.graph.remove(node, safe=True)


def keep_gathered_encodings(model: ir.Model) -> None:
    """Keep the encoding across Gather: the table's own after it (one scale), or the output's before it (several).

    With two encodings the compiler keeps the table as float16, and on v68 fails.
    """
    for node in _of_type(model, "Gather"):
        table, quantizer = node.inputs[0], quantizer_of(node)
        target = None if quantizer is None else parameters(quantizer)
        if table is None or quantizer is None or target is None or stored_integers(table) is None:
            continue
        own, source, name = encoding_of(table), table.producer(), str(node.name)
        if own is None and source is not None:
            integers = target.encoding.quantize(stored_reals(source)).astype(target.dtype)
            node.replace_input_with(0, dequantized(node, integers, target, f"{name}_table"))
        elif own is not None and own != target:
            quantizer.replace_input_with(0, requantized(quantizer, node.outputs[0], own, f"{name}_own"))


def fix_saturating_outputs(model: ir.Model) -> None:
    """Quantize what Sigmoid and Tanh give by the kernels' fixed encodings, then again by the graph's own.

    The compiler puts the fixed encoding in place of the graph's anyway; a graph output (27 dB) then misreads it.
    """
    for node in (n for op in SATURATING for n in _of_type(model, op)):
        quantizer = quantizer_of(node)
        port = None if quantizer is None else parameters(quantizer)
        fixed = SATURATING[node.op_type].get(port.dtype) if port else None
        if quantizer is not None and fixed is not None and fixed != port:
            quantizer.replace_input_with(0, requantized(quantizer, node.outputs[0], fixed, f"{node.name}_fixed"))


def blocked_gemm_to_matmul(model: ir.Model) -> None:
    """Gemm with blocked weights → MatMul, and Add of its bias: integer block kernels exist for products alone.

    By the compiler's own estimate 19 µs against 30 for one row of 1024 × 1024, and 71 against 190 for 64 rows; with biases two
    pairs of 512 × 2048 take 83 against 299 for one row, and 430 against 1660 for 128. A bias goes with 16-bit activations only: the
    product's range follows from the sum's and the bias's, and 8 bits have no room for a wider one.
    """
    for node in _of_type(model, "Gemm"):
        data, weight, bias = (*node.inputs, None)[:3]
        source = None if weight is None else weight.producer()
        shape, name = static_shape(node.outputs[0]), str(node.name)
        quantizer = quantizer_of(node)
        port = None if quantizer is None else parameters(quantizer)
        if data is None or weight is None or source is None or shape is None or not has_lpbq_scales(source):
            continue
        if bias is not None and (port is None or port.dtype != "uint16"):
            continue
        product = insert(node, "MatMul", [data, _turned(node, source)], f"{name}_matmul", shape)
        if bias is not None and port is not None:
            product = _biased(node, product, bias, port)
        ir.convenience.replace_all_uses_with(node.outputs[0], product)
        model.graph.remove(node, safe=True)


def _turned(node: ir.Node, source: ir.Node) -> ir.Value:
    """A Gemm's weight as [inputs, outputs]."""
    if not attribute(node, "transB", 0):
        return source.outputs[0]
    arrays = [array for value in source.inputs if (array := constant(value)) is not None]
    name, block = str(node.name), attribute(source, "block_size", 0)
    turned = [store(node, f"{name}_{part}", np.ascontiguousarray(a.T)) for part, a in zip("wsz", arrays, strict=False)]
    return insert(node, "DequantizeLinear", turned, f"{name}_weight", arrays[0].T.shape, axis=0, block_size=block)


def _biased(node: ir.Node, product: ir.Value, bias: ir.Value, port: Port) -> ir.Value:
    """A product, whose range holds all that `port` does without the bias, and the sum of both."""
    source, held, name = bias.producer(), constant(bias), f"{node.name}_bias"
    reals = stored_reals(source) if source is not None and held is None else np.asarray(held, np.float32)
    low, high = (port.scale * (end - port.zero_point) for end in INTEGER_RANGES[port.dtype])
    most, least = float(reals.max()), float(reals.min())
    wide, own = (
        encoding_for_range(*ends, port.dtype, symmetric=False) for ends in ((low - most, high - least), (least, most))
    )
    product = requantized(node, product, _port(wide), f"{node.name}_product")
    added = dequantized(node, own.quantize(reals).astype(port.dtype), _port(own), name)
    return insert(node, "Add", [product, added], f"{name}_sum", static_shape(product) or ())


def _port(encoding: Encoding) -> Port:
    return Port(encoding.dtype, float(encoding.scale), int(encoding.zero_point))


def has_lpbq_scales(node: ir.Node) -> bool:
    """Whether a DequantizeLinear is blocked and each block's scale is k / 16 of its channel's greatest."""
    scale = constant(node.inputs[1]) if node.op_type == "DequantizeLinear" else None
    if scale is None or not attribute(node, "block_size", 0):
        return False
    steps = LPBQ_LEVELS * scale / scale.max(axis=attribute(node, "axis", 1), keepdims=True)
    return bool(np.all(np.abs(steps - np.rint(steps)) < 1e-3) and steps.min() > 0.5)


def _of_type(model: ir.Model, op: str) -> list[ir.Node]:
    return [node for node in model.graph if node.op_type == op]
