"""The vendor compiler's own estimate for a float graph at a precision, quantized with ranges of random inputs.

Ranges move numbers, not shapes, and latency follows shapes: a model needs no data for this. Images enter and leave with channels last,
as phones' runtimes hand them over: the compiler's layout change at a graph's boundary can take longer than all the rest. What public models'
deployments compute beside the file's ops (see `deployed`) is put in. What a compile gave is kept under the hash of the graph, the precision and the
toolchain.
"""

import json
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from pocketport.channels_last import images_channels_last
from pocketport.compress.bundle import Component, ModelBundle
from pocketport.compress.graph import shape_of
from pocketport.errors import ToolchainError
from pocketport.files import cache_root, write_json
from pocketport.profiles.prediction.deployed import normalize_pictures, whole_normalizations
from pocketport.profiles.prediction.features import GraphFeatures
from pocketport.targets.contract import CompileRequest, EstimatingBackend, Target
from pocketport.targets.registry import backend_for
from pocketport.workers import Limits, call_in_worker

FORM = 7  # of what is compiled; 1 had channels first, 2 pictures as files have them, 3 biases apart from products, 4 slow pools, 5 one chip, 6 five dimensions
MEMORY_BYTES = 12 << 30
TOOLCHAINS = {"qualcomm": "onnxruntime-qnn"}


def compiler_estimate(
    bundle: ModelBundle, component: Component, features: GraphFeatures, target: Target, precision: str, seconds: float
) -> dict[str, float]:
    """The compiler's figures, or those that it gave for the same graph before.

    Args:
        bundle: float graphs.
        component: of the bundle.
        features: of its graph.
        target: the chip that the graph is lowered for.
        precision: scheme of the whole graph; ops that cannot take it stay float.
        seconds: wall time that quantizing and compiling may take.

    Returns:
        Figures by name; empty where the target's vendor has no performance model.

    Raises:
        ToolchainError: the toolchain is not installed, refused the graph, or took longer.
    """
    backend = backend_for(target)
    if not isinstance(backend, EstimatingBackend):
        return {}
    missing = backend.missing()
    if missing:
        raise ToolchainError(missing[0].why, where=str(target), fix=missing[0].fix)
    key = f"{features.digest}-{target.soc}-{precision}-{_version(target.vendor)}-{FORM}"
    note = cache_root() / "estimates" / f"{key}.json"
    if note.is_file():
        return {name: float(value) for name, value in json.loads(note.read_text(encoding="utf-8")).items()}
    with TemporaryDirectory(prefix="pocketport-") as folder:
        source = Path(folder) / "float"
        alone = {component.name: component}
        ModelBundle(bundle.name, bundle.family, bundle.sha256, alone, config=bundle.config).save(source)
        figures: dict[str, float] = call_in_worker(
            "pocketport.compiler_estimate:estimate_in_worker",
            source, component.name, target, precision,
            label=f"{target}: estimate {component.name}",
            limits=Limits(seconds=seconds, memory_bytes=MEMORY_BYTES),
        )  # fmt: skip
    note.parent.mkdir(parents=True, exist_ok=True)
    write_json(note, figures)
    return figures


def _version(vendor: str) -> str:
    try:
        return version(TOOLCHAINS[vendor])
    except (KeyError, PackageNotFoundError):
        return "unknown"


def estimate_in_worker(source: Path, name: str, target: Target, precision: str) -> dict[str, float]:
    """Quantize and ask the compiler; runs in the worker process."""
    backend = backend_for(target)
    assert isinstance(backend, EstimatingBackend)
    bundle = ModelBundle.load(source)
    normalize_pictures(bundle[name].graph)
    images_channels_last(bundle[name].graph)
    if precision != "float":
        whole_normalizations(bundle[name].graph)
        bundle = _quantized(bundle, name, target, precision)
    with TemporaryDirectory(prefix="pocketport-") as folder:
        work = Path(folder)
        bundle.save(work / "pivot")
        request = CompileRequest(name, work / "pivot" / f"{name}.onnx", target, work, work)
        return dict(backend.estimate(request, backend.lower(request)))


def _quantized(bundle: ModelBundle, name: str, target: Target, precision: str) -> ModelBundle:
    from pocketport.calibration.capture import calibrate
    from pocketport.compress.pivot.apply import apply_plan
    from pocketport.compress.planning.plan import make_plan
    from pocketport.compress.recipe import Recipe, Rule

    recipe = Recipe(name="estimate", rules=[Rule(scheme=precision, fallback=["float"], algorithm="rtn")])
    plan = make_plan(bundle, recipe, str(target), backend_for(target).legality(target))
    component = bundle[name]
    statistics = calibrate({name: component.graph}, [(name, random_inputs(component))])
    return apply_plan(bundle, plan, statistics)[0]


def random_inputs(component: Component) -> dict[str, NDArray[np.generic]]:
    """Normal floats; indices of 0 and flags of 1, which every table and mask takes."""
    noise = np.random.default_rng(0)
    inputs: dict[str, NDArray[np.generic]] = {}
    for value in component.graph.graph.inputs:
        assert value.dtype is not None
        kind, shape = value.dtype.numpy(), shape_of(value)
        floating = np.issubdtype(kind, np.floating)
        inputs[str(value.name)] = (
            noise.standard_normal(shape).astype(kind) if floating else np.full(shape, kind.type(kind == np.bool_))
        )
    return inputs
