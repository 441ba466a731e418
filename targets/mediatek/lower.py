"""Pivot (or float ONNX) → .tflite, node by node through the registered handlers."""

from dataclasses import dataclass, field
from pathlib import Path

import onnx_ir as ir

from pocketport.compress.graph import inferred, load_graph, static_shape
from pocketport.diagnostics import Diagnostic, Severity
from pocketport.errors import ToolchainError
from pocketport.targets.mediatek.emit import Emitter, Tensor
from pocketport.targets.mediatek.lowering import Lowering, Refused, attribute
from pocketport.targets.mediatek.registry import handlers

_INPUT_TYPES = {
    ir.DataType.FLOAT: "float32",
    ir.DataType.INT32: "int32",
    ir.DataType.INT64: "int32",
    ir.DataType.BOOL: "bool",
}


@dataclass
class LoweredGraph:
    """What became of a graph: its inputs and outputs by ONNX name, and an ERROR for everything refused."""

    emitter: Emitter
    inputs: dict[str, Tensor] = field(default_factory=dict)
    outputs: dict[str, Tensor] = field(default_factory=dict)
    refused: list[Diagnostic] = field(default_factory=list)


def lower_graph(component: str, model: ir.Model) -> LoweredGraph:
    """Lower every node of `model`.

    Lowering goes on behind a refused node, so that one pass finds them all; such a result must not be saved.
    """
    graph = inferred(model).graph
    context, known = Lowering(graph), handlers()
    lowered = LoweredGraph(context.emitter)

    def refuse(what: str, error: Refused) -> None:
        lowered.refused.append(
            Diagnostic("mediatek.unsupported-op", Severity.ERROR, f"{component}, {what}", error.why, error.fix)
        )

    for value in graph.inputs:
        if value.name not in graph.initializers:
            try:
                lowered.inputs[str(value.name)] = _input(context, value)
            except Refused as error:
                refuse(f"input {value.name}", error)
                _stand_in(context, value)
    for node in graph:
        if node in context.folded or node.op_type == "Constant":
            continue
        folded = set(context.folded)
        try:
            if node.op_type not in known:
                raise Refused("LiteRT has no op for it here", "replace it, or leave this component to another target")
            known[node.op_type](context, node)
        except Refused as error:
            refuse(f"node {node.name or node.outputs[0].name}, op {node.op_type}", error)
            context.folded = folded
            for output in node.outputs:
                _stand_in(context, output)
    lowered.outputs = {str(value.name): context.as_float(context.read(value)) for value in graph.outputs}
    return lowered


def _input(context: Lowering, value: ir.Value) -> Tensor:
    if value.dtype not in _INPUT_TYPES:
        raise Refused(f"inputs of type {value.dtype} are not taken", "use float32 or int32")
    tensor = context.emitter.tensor(str(value.name), context.shape(value), _INPUT_TYPES[value.dtype])
    context.define(value, tensor)
    return tensor


def _stand_in(context: Lowering, value: ir.Value) -> None:
    """Something for the nodes behind a refused one to read."""
    context.define(value, context.emitter.tensor(str(value.name), static_shape(value) or (), "float32"))


def lower_file(component: str, pivot: Path, out: Path) -> tuple[Diagnostic, ...]:
    """Write the .tflite of `pivot` to `out`; what the NPU will compute otherwise than LiteRT is told.

    Raises:
        ToolchainError: naming every node that can't be lowered.
    """
    model = load_graph(pivot)
    lowered = lower_graph(component, model)
    if lowered.refused:
        told = "; ".join(f"{d.where}: {d.why}" for d in lowered.refused)
        why = f"{len(lowered.refused)} nodes can't be lowered: {told}"
        raise ToolchainError(why, where=f"mediatek {component}", fix=lowered.refused[0].fix)
    lowered.emitter.save(out, lowered.inputs, lowered.outputs, f"pocketport {component}")
    return _remarks(component, model)


def _remarks(component: str, model: ir.Model) -> tuple[Diagnostic, ...]:
    exact = [n for n in model.graph if n.op_type == "Gelu" and attribute(n, "approximate", "none") == "none"]
    if not exact:
        return ()
    where = f"{component}, {len(exact)} Gelu nodes"
    why = (
        "MediaTek's plugin computes every GELU by its tanh approximation (up to 5e-4 off); LiteRT on this host does not"
    )
    fix = "nothing, or fine-tune the model with the approximation"
    return (Diagnostic("mediatek.gelu-by-tanh", Severity.NOTE, where, why, fix),)


def check_graph(component: str, model: ir.Model) -> tuple[Diagnostic, ...]:
    """An ERROR for each node that lowering refuses; nothing is written."""
    return tuple(lower_graph(component, model).refused)
