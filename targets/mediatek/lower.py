"""Pivot (or float ONNX) → .tflite, node by node through the registered handlers."""

from pathlib import Path

import onnx_ir as ir

from pocketport.compress.graph import inferred, load_graph
from pocketport.diagnostics import Diagnostic, Severity
from pocketport.errors import ToolchainError
from pocketport.targets.mediatek.emit import Tensor
from pocketport.targets.mediatek.lowering import Lowering, Refused, handlers

DESCRIPTION = "pocketport"
_INPUT_TYPES = {"FLOAT": "float32", "INT32": "int32", "INT64": "int32", "BOOL": "bool"}


def lower_graph(component: str, model: ir.Model) -> tuple[Lowering, dict[str, Tensor], dict[str, Tensor], list[Diagnostic]]:
    """Lower every node of `model`.

    Returns:
        The finished state, input and output tensors by ONNX name, and an ERROR Diagnostic for each refused node
        (lowering goes on behind it, so that one pass finds them all; nothing may be saved then).
    """
    graph = inferred(model).graph
    context, known, refused = Lowering(graph), handlers(), []
    inputs = {}
    for value in graph.inputs:
        if value.name in graph.initializers:
            continue
        dtype = _INPUT_TYPES.get(value.dtype.name if value.dtype is not None else "")
        if dtype is None:
            raise ToolchainError(f"inputs of type {value.dtype} are not taken", where=f"{component}: input {value.name}", fix="use float32 or int32")
        inputs[str(value.name)] = context.emitter.tensor(str(value.name), context.shape(value), dtype)
        context.define(value, inputs[str(value.name)])
    for node in graph:
        if node in context.folded or node.op_type == "Constant":
            continue
        try:
            if node.op_type not in known:
                raise Refused("no LiteRT lowering for this op", "replace it, or leave this component to another target")
            known[node.op_type](context, node)
        except Refused as error:
            refused.append(_refusal(component, node, error))
            for output in node.outputs:
                context.define(output, context.emitter.tensor(str(output.name), context.shape(output), "float32"))
    outputs = {str(v.name): _output(context, v) for v in graph.outputs}
    return context, inputs, outputs, refused


def _output(context: Lowering, value: ir.Value) -> Tensor:
    """A graph output: float32 or int32, in ONNX's order of dimensions."""
    return context.as_float(context.read(value))


def _refusal(component: str, node: ir.Node, error: Refused) -> Diagnostic:
    where = f"{component}: node {node.name or node.outputs[0].name} ({node.op_type})"
    return Diagnostic("mediatek.unsupported-op", Severity.ERROR, where, error.why, error.fix)


def lower_file(component: str, pivot: Path, out: Path) -> None:
    """Write the .tflite of `pivot` to `out`.

    Raises:
        ToolchainError: naming every node that can't be lowered.
    """
    context, inputs, outputs, refused = lower_graph(component, load_graph(pivot))
    if refused:
        told = "; ".join(f"{d.where}: {d.why}" for d in refused)
        raise ToolchainError(f"{len(refused)} nodes can't be lowered: {told}", where=f"mediatek {component}", fix=refused[0].fix)
    context.emitter.save(out, inputs, outputs, f"{DESCRIPTION} {component}")


def check_graph(component: str, model: ir.Model) -> tuple[Diagnostic, ...]:
    """A Diagnostic for each node that lowering refuses; nothing is written."""
    return tuple(lower_graph(component, model)[3])
