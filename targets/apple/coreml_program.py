"""A pivot as an ``.mlpackage``."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import onnx_ir as ir

from pocketport.compress.graph import static_shape
from pocketport.targets.apple.coreml_emitter import CoreMLEmitter, mil_name
from pocketport.targets.apple.lowering import lower_graph
from pocketport.targets.apple.onnx_ops import TABLE

FUNCTION = "main"


def write_mlpackage(model: ir.Model, component: str, path: Path) -> None:
    """Lower `model` (checked before: see ``lowering.check_graph``) to `path`, a directory; same model, same bytes."""
    import coremltools
    from coremltools.converters.mil.mil import Builder, Function, Program, types

    target = coremltools.target.iOS18
    inputs: dict[str, Any] = {}
    for value in model.graph.inputs:
        kind = types.fp16 if value.dtype is not None and value.dtype.is_floating_point() else types.int32
        inputs[mil_name(str(value.name))] = Builder.placeholder(shape=static_shape(value), dtype=kind)
    with Function(inputs, opset_version=target) as function:
        emitter = CoreMLEmitter(function.inputs)
        lower_graph(model, component, emitter, TABLE)
        function.set_outputs(list(emitter.outputs.values()))
    program = Program()
    program.add_function(FUNCTION, function)
    package = coremltools.convert(
        program, source="milinternal", convert_to="mlprogram", minimum_deployment_target=target, skip_model_load=True,
        compute_precision=coremltools.precision.FLOAT32,  # nothing is cast: the program is float16 already
        pass_pipeline=coremltools.PassPipeline.EMPTY,
    )  # fmt: skip
    if path.exists():
        shutil.rmtree(path)
    package.save(str(path))
