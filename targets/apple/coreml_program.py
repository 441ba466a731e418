"""A pivot as an ``.mlpackage``, byte for byte the same each time, and reading it back."""

import importlib
import json
import logging
import shutil
import sys
import threading
import uuid
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from pocketport.compress.graph import static_shape
from pocketport.files import size_of, write_json
from pocketport.targets.apple.coreml_emitter import CoreMLEmitter, mil_names
from pocketport.targets.apple.lowering import lower_graph
from pocketport.targets.apple.target import CORE_ML_MINIMUM_OS

FUNCTION = "main"
OTHER_FRAMEWORKS = ("sklearn", "tensorflow", "torch", "transformers", "xgboost")
STORED = {"constexpr_blockwise_shift_scale": "data", "constexpr_lut_to_dense": "indices"}  # op → its stored integers
CONVERSION_DATE = "com.github.apple.coremltools.conversion_date"


def feature_names(model: ir.Model) -> dict[str, str]:
    """The package's names of the model's inputs and outputs."""
    return mil_names(str(v.name) for v in (*model.graph.inputs, *model.graph.outputs))


def write_mlpackage(model: ir.Model, component: str, path: Path) -> None:
    """Lower `model` (checked before: see ``lowering.check_graph``) to `path`, a directory; same model, same bytes."""
    coremltools = _coremltools()
    from coremltools.converters.mil.mil import Builder, Function, Program, types

    target = coremltools.target.iOS18
    inputs: dict[str, Any] = {}
    names = feature_names(model)
    for value in model.graph.inputs:
        kind = types.fp16 if value.dtype is not None and value.dtype.is_floating_point() else types.int32
        inputs[names[str(value.name)]] = Builder.placeholder(shape=static_shape(value), dtype=kind)
    with Function(inputs, opset_version=target) as function:
        emitter = CoreMLEmitter(function.inputs, names)
        lower_graph(model, component, emitter)
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
    _make_reproducible(path)


def _make_reproducible(path: Path) -> None:
    """Take out the date, order the protobuf's maps, and derive the manifest's identifiers from the item names."""
    from coremltools.proto import Model_pb2

    file = path / "Data" / "com.apple.CoreML" / "model.mlmodel"
    specification = Model_pb2.Model.FromString(file.read_bytes())
    specification.description.metadata.userDefined.pop(CONVERSION_DATE, None)
    file.write_bytes(specification.SerializeToString(deterministic=True))
    manifest = json.loads((path / "Manifest.json").read_text("utf-8"))
    fresh = {
        key: str(uuid.uuid5(uuid.NAMESPACE_URL, entry["path"])) for key, entry in manifest["itemInfoEntries"].items()
    }
    manifest["itemInfoEntries"] = {fresh[key]: entry for key, entry in manifest["itemInfoEntries"].items()}
    manifest["rootModelIdentifier"] = fresh[manifest["rootModelIdentifier"]]
    write_json(path / "Manifest.json", manifest)


def load_program(path: Path) -> Any:
    """The MIL program that a package holds, its weights read from the package."""
    coremltools = _coremltools()
    from coremltools.converters.mil.frontend.milproto.load import load

    model = coremltools.models.MLModel(str(path), skip_model_load=True)
    specification = model.get_spec()
    return load(
        specification, specification_version=specification.specificationVersion, file_weights_dir=model.weights_dir
    )


def read_mlpackage(path: Path) -> tuple[Counter[str], dict[str, str | int | float]]:
    """What the package holds: compressed elements by type (``int4`` …), and facts for the manifest."""
    operations = load_program(path).functions[FUNCTION].operations
    from coremltools.converters.mil.mil import types

    elements: Counter[str] = Counter()
    for operation in operations:
        if operation.op_type in STORED:
            data = operation.inputs[STORED[operation.op_type]]
            elements[types.builtin_to_string(data.dtype)] += int(np.prod(data.shape))
    facts: dict[str, str | int | float] = {f"{name}_elements": n for name, n in sorted(elements.items())}
    facts["operations"] = sum(operation.op_type != "const" for operation in operations)
    facts["minimum_os"] = CORE_ML_MINIMUM_OS
    facts["weights_bytes"] = size_of(path / "Data" / "com.apple.CoreML" / "weights")
    return elements, facts


def _coremltools() -> Any:
    """coremltools without its converters from other frameworks: importing their packages takes four fifths of 3 s CPU."""
    if "coremltools" not in sys.modules:
        logging.getLogger("coremltools").setLevel(logging.ERROR)  # it remarks that this is no Mac
        loaded = {name: sys.modules.get(name) for name in OTHER_FRAMEWORKS}
        sys.modules.update(dict.fromkeys(OTHER_FRAMEWORKS))  # type: ignore[arg-type]  # None: "not installed"
        try:
            importlib.import_module("coremltools")
        finally:
            for name, module in loaded.items():
                del sys.modules[name]
                if module is not None:
                    sys.modules[name] = module
    # The lock of its progress bars would be a semaphore that outlives a worker process.
    importlib.import_module("tqdm").tqdm.set_lock(threading.RLock())
    return importlib.import_module("coremltools")
