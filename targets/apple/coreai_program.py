"""A pivot as an ``.aimodel``, and what the file itself says about its weights."""

import json
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import onnx_ir as ir

from pocketport.compress.graph import static_shape
from pocketport.errors import ToolchainError
from pocketport.files import write_json
from pocketport.targets.apple.coreai_emitter import CoreAIEmitter
from pocketport.targets.apple.lowering import lower_graph
from pocketport.targets.apple.target import CORE_AI_MINIMUM_OS

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
            lower_graph(model, component, emitter)
            graph.outputs_spec = list(emitter.outputs.items())
    AIProgram(module).save_asset(path)
    _make_reproducible(path)


def _make_reproducible(path: Path) -> None:
    """Take the date of creation out of the metadata; the program itself has no date."""
    metadata = json.loads((path / "metadata.json").read_text("utf-8"))
    metadata.pop("creationDate", None)
    write_json(path / "metadata.json", metadata)


def read_aimodel(path: Path) -> tuple[Counter[str], dict[str, str | int | float]]:
    """What the file holds: constant elements by type (``int4``, ``float16``, …), and facts for the manifest.

    Core AI's compiler is run on it, as its runtime does before executing.

    Raises:
        ToolchainError: the toolchain can't read or compile the file.
    """
    from coreai.authoring import AIModelAsset

    asset = AIModelAsset.load(path)
    summary = asset.summary()
    if summary is None:
        raise ToolchainError("the file holds no program", where=str(path), fix="compile the component again")
    with tempfile.TemporaryDirectory(suffix=".aimodelx") as folder:
        asset._write_odix(Path(folder))
    elements = Counter({str(name).lower(): int(count) for name, count in summary.storage_types})
    facts: dict[str, str | int | float] = {f"{name}_elements": n for name, n in sorted(elements.items()) if n >= 256}
    facts["minimum_os"] = CORE_AI_MINIMUM_OS
    facts["compatibility_version"] = str(summary._compatibility_version)
    return elements, facts
