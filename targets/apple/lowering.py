"""Walks a pivot once and tells an Emitter what to write; shared by both Apple formats."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from pocketport.compress.graph import constant, inferred
from pocketport.compress.pivot.palettes import stored_palettes
from pocketport.diagnostics import Diagnostic, Severity

# each of these registers its ops in TABLE
from pocketport.targets.apple import onnx_elementwise, onnx_linear, onnx_movement  # noqa: F401
from pocketport.targets.apple.call import TABLE, Call, NotLowerable, emitted, shape_of
from pocketport.targets.apple.emitter import FLOAT16_MAX, Discard, Emitter
from pocketport.targets.apple.weights import palettize
from pocketport.targets.legality import OpRule

FLOATS = {ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE}
INTEGERS = {ir.DataType.INT64, ir.DataType.INT32}
NOT_LISTED = OpRule(why="there is no lowering of this op", fix="export the model without it, or use another target")
FAILED = object()  # the result of a node that could not be lowered


def lower_graph(
    model: ir.Model, component: str, emitter: Emitter[Any], refused: Mapping[str, OpRule] = {}
) -> list[Diagnostic]:
    """Write `model` through `emitter`.

    Returns an ERROR Diagnostic for every node that can't be written (then nothing is finished; nodes that only depend
    on one are passed over), and a WARNING for every constant beyond float16's range, which is saturated.
    """
    model = inferred(model)
    found: list[Diagnostic] = []
    values: dict[ir.Value | None, Any] = {}
    for value in model.graph.inputs:
        emitter.begin(str(value.name))
        try:
            values[value] = emitter.parameter(str(value.name), shape_of(value), integer=_is_integer(value))
        except NotLowerable as error:
            where = f"{component}, input {value.name}"
            found.append(Diagnostic("apple.unsupported-input", Severity.ERROR, where, error.why, error.fix))
            values[value] = FAILED
    palettes = stored_palettes(model.graph)
    for value, palette in palettes.items():
        values[value] = palettize(np.asarray(constant(palette.indices)), palette.palette())
    looking_up = {node for palette in palettes.values() for node in palette.nodes}
    for node in model.graph:
        if node.op_type == "Constant" or node in looking_up:
            continue
        operands = [values[v] if v in values else constant(v) for v in node.inputs]
        found += [_saturated(component, v) for v in node.inputs if v is not None and v not in values and _exceeds(v)]
        results: list[Any] = [FAILED] * len(node.outputs)
        if not any(operand is FAILED for operand in operands):
            emitter.begin(str(node.outputs[0].name))
            try:
                results = _lowered(Call(node, emitter, operands), refused)
            except NotLowerable as error:
                where = f"{component}, node {node.name or node.outputs[0].name}, op {node.op_type}"
                found.append(Diagnostic("apple.unsupported-op", Severity.ERROR, where, error.why, error.fix))
        values.update(zip(node.outputs, results, strict=False))  # optional outputs that nobody reads are not made
    if not any(d.severity is Severity.ERROR for d in found):
        emitter.finish({str(v.name): emitted(values.get(v, constant(v)), emitter) for v in model.graph.outputs})
    return found


def check_graph(model: ir.Model, component: str, refused: Mapping[str, OpRule]) -> list[Diagnostic]:
    """What `lower_graph` would say, without any toolchain: it lowers into nothing."""
    return lower_graph(model, component, Discard(), refused)


def _lowered(call: Call, refused: Mapping[str, OpRule]) -> list[Any]:
    """The values that a node makes."""
    node = call.node
    if node.domain not in ("", "ai.onnx") or node.op_type not in TABLE:
        rule = refused.get(node.op_type, NOT_LISTED)
        raise NotLowerable(rule.why, rule.fix)
    result = TABLE[node.op_type](call)
    return result if isinstance(result, list) else [result]


def _is_integer(value: ir.Value) -> bool:
    if value.dtype in FLOATS or value.dtype in INTEGERS:
        return value.dtype in INTEGERS
    raise NotLowerable(f"inputs of type {value.dtype} are not taken", "use float32 or int32 inputs")


def _exceeds(value: ir.Value) -> bool:
    array = constant(value)
    if array is None or array.dtype.kind != "f":
        return False
    return bool(array.size and max(-array.min(), array.max()) > FLOAT16_MAX)


def _saturated(component: str, value: ir.Value) -> Diagnostic:
    return Diagnostic(
        "apple.float16-range", Severity.WARNING, f"{component}, tensor {value.name}",
        f"it holds values beyond float16's ±{FLOAT16_MAX:.0f}; they are saturated",
        "nothing, if it is an attention mask; otherwise rescale the model",
    )  # fmt: skip
