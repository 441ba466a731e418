"""Stage 3: a Plan per target, then the pivot: the model as QDQ ONNX in the numbers which that target takes."""

import json
from pathlib import Path

from pocketport.compress.blockwise.estimate import Estimate
from pocketport.compress.bundle import ModelBundle
from pocketport.compress.cache.float_cache import with_float_ends
from pocketport.compress.diagnosis.compare import compare_graphs
from pocketport.compress.evidence import check_evidence
from pocketport.compress.graph import hollowed
from pocketport.compress.ingest import ingest as ingest_source
from pocketport.compress.pivot.apply import apply_plan
from pocketport.compress.planning.plan import Plan, make_plan
from pocketport.compress.recipe import load_recipe
from pocketport.compress.reconstruction.estimate import estimate_on_samples
from pocketport.data import load_data
from pocketport.diagnostics import Diagnostic
from pocketport.files import write_json
from pocketport.request import Request
from pocketport.stages.calibrate import load_statistics
from pocketport.stages.context import Context
from pocketport.stages.held_out import load_held_out
from pocketport.stages.ingest import load_bundle
from pocketport.store import StageResult
from pocketport.targets.contract import Target
from pocketport.targets.registry import backend_for

MOST_TENSORS = 400


def plan_targets(
    request: Request,
) -> tuple[dict[str, Plan], dict[str, tuple[Diagnostic, ...]], dict[str, Estimate]]:
    """As `make_plans`, on the source itself, and what rounding on samples will take where a plan does so."""
    bundle = ingest_source(request.source, shapes=request.shapes)
    plans, findings = make_plans(request, bundle)
    found = {text: estimate_on_samples(bundle, plan, request.calibration_samples) for text, plan in plans.items()}
    return plans, findings, {text: one for text, one in found.items() if one is not None}


def make_plans(request: Request, bundle: ModelBundle) -> tuple[dict[str, Plan], dict[str, tuple[Diagnostic, ...]]]:
    """Plan and legality findings of every target, before anything slow happens.

    Raises:
        UsageError: an unknown target, a recipe that asks for what a chip does not take, or one known to be bad there.
    """
    recipe = load_recipe(request.recipe)
    plans, findings = {}, {}
    for text in request.targets:
        check_evidence(request.recipe, text)
        target = Target.parse(text)
        backend = backend_for(target)
        legality = backend.legality(target)
        findings[text] = tuple(
            d for component in bundle for d in backend.check(component.name, hollowed(component.graph), target)
        )
        plans[text] = make_plan(bundle, recipe, text, legality)
    return plans, findings


def quantize(
    context: Context, ingested: StageResult, calibrated: StageResult, held_out: StageResult, target: str, plan: Plan
) -> StageResult:
    """``bundle/`` (the pivot), ``encodings.npz``, ``plan.json`` and ``layers.json`` (per-tensor SQNR)."""
    name = f"quantize {target}"
    context.progress.start(name, f"{target}: quantize", None)
    inputs = {
        "bundle": ingested.digest,
        "statistics": calibrated.digest,
        "plan": plan.to_json(),
        "held_out": held_out.digest,
    }
    data = load_data(load_bundle(ingested), context.request) if plan.on_samples else None
    if data is not None:
        inputs["samples"] = data.fingerprint

    def produce(directory: Path) -> None:
        bundle = load_bundle(ingested)
        samples = None if data is None else data.calibration
        pivot, encodings = apply_plan(bundle, plan, load_statistics(calibrated), samples=samples)
        pivot.save(directory / "bundle")
        encodings.save(directory / "encodings.npz")
        write_json(directory / "plan.json", plan.to_json())
        write_json(directory / "layers.json", _layer_errors(bundle, ModelBundle.load(directory / "bundle"), held_out))

    result = context.store.run(
        "quantize",
        inputs,
        produce,
        code=("compress", "calibration"),
        packages=("onnx-ir", "onnxruntime", "numpy", "torch"),
    )
    return context.record(name, result)


def _layer_errors(bundle: ModelBundle, pivot: ModelBundle, held_out: StageResult) -> dict[str, list[tuple[str, float]]]:
    """Component → (tensor, SQNR dB) in graph order, on one held-out sample."""
    errors = {}
    for component in bundle:
        feeds = load_held_out(held_out, component.name).feeds[:1]
        compared = compare_graphs(component.graph, with_float_ends(pivot[component.name].graph), feeds)
        errors[component.name] = [(e.tensor, round(e.cumulative_db, 2)) for e in compared][:MOST_TENSORS]
    return errors


def load_pivot(result: StageResult) -> ModelBundle:
    """Open the pivot bundle."""
    return ModelBundle.load(result.path / "bundle")


def load_plan(result: StageResult) -> Plan:
    """Read the plan that the pivot was made by."""
    return Plan.from_json(json.loads((result.path / "plan.json").read_text(encoding="utf-8")))


def load_layer_errors(result: StageResult) -> dict[str, list[tuple[str, float]]]:
    """Read ``layers.json``."""
    document: dict[str, list[tuple[str, float]]] = json.loads((result.path / "layers.json").read_text(encoding="utf-8"))
    return document
