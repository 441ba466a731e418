"""A pivot as an ``.aimodel``, and what the file itself says about its weights."""

from pathlib import Path

import numpy as np
import onnx_ir as ir

from pocketport.compress.graph import static_shape
from pocketport.targets.apple.coreai_emitter import CoreAIEmitter
from pocketport.targets.apple.lowering import lower_graph
from pocketport.targets.apple.onnx_ops import TABLE

FUNCTION = "main"


def write_aimodel(model: ir.Model, component: str, path: Path) -> None:
    """Lower `model` (checked before: see ``lowering.check_graph``) to `path`, a directory; same model, same bytes."""
    from coreai._compiler._mlir_libs._coreaiIR._bindings.mlir.dialects.coreai import register_should_const_folding_hook
    from coreai.authoring import AIProgram, Context, Module, TensorType
    from coreai.authoring.debuginfo import DebugInfo
    from coreai.authoring.graph_builder import GraphOp

    context = Context()._mlir_context
    register_should_const_folding_hook(callable=lambda operation: False, context=context)
    with context:
        module = Module.create()
    with module, DebugInfo.unknown().activate():
        names = [str(v.name) for v in model.graph.inputs]
        types = []
        for value in model.graph.inputs:
            kind = np.float16 if value.dtype is not None and value.dtype.is_floating_point() else np.int32
            types.append(TensorType(static_shape(value), kind)._to_mlir())
        graph = GraphOp(FUNCTION, types, [], input_names=names)
        with graph.block:
            emitter = CoreAIEmitter(list(zip(names, graph.arguments, strict=True)))
            lower_graph(model, component, emitter, TABLE)
            graph.outputs_spec = list(emitter.outputs.items())
    AIProgram(module).save_asset(path)
