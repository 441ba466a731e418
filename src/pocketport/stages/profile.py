"""Stage 6: what the model costs on the device: measured where the target is this host, predicted where it is a phone."""

import json
import statistics
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from pocketport.compress.bundle import ModelBundle
from pocketport.compress.cache.float_cache import CacheConversion
from pocketport.data import Feeds
from pocketport.diagnostics import Diagnostic, Severity
from pocketport.errors import ToolchainError
from pocketport.files import write_json
from pocketport.profiles.device import load_device
from pocketport.profiles.measurement import Measurement, Provenance, ProvenanceKind
from pocketport.profiles.memory import memory_plan
from pocketport.profiles.prediction.estimates import ESTIMATE
from pocketport.profiles.prediction.extraction import graph_features
from pocketport.profiles.prediction.predictors import (
    CompilerPredictor,
    GraphPredictor,
    ModelFeatures,
    combined,
    precision_of,
)
from pocketport.profiles.story import story
from pocketport.run_document import MeasurementRecord, MemoryPoint, ProfileRecord
from pocketport.stages.context import Context
from pocketport.stages.held_out import load_held_out
from pocketport.stages.ingest import load_bundle
from pocketport.stages.quantize import load_pivot, load_plan
from pocketport.stages.verify import load_answers, primary_artifact
from pocketport.store import StageResult
from pocketport.targets.contract import (
    Artifact,
    Backend,
    CompileRequest,
    EstimatingBackend,
    MeasuringBackend,
    Target,
)
from pocketport.targets.registry import backend_for
from pocketport.workers import Limits, call_in_worker

LIMITS = Limits(seconds=900, memory_bytes=12 << 30)
TYPICAL_VIEWS, TYPICAL_TOKENS = 3, 10  # of a request, when no task was run
HOST_FLOAT_BITS, NPU_FLOAT_BITS = 32, 16
RUNTIME = "qnn_dlc"  # times of a compiled graph alone


def profile_target(
    context: Context,
    target: str,
    ingested: StageResult,
    held_out: StageResult,
    quantized: StageResult,
    compiled: Mapping[str, StageResult],
    task: StageResult | None,
) -> StageResult:
    """``profile.json`` (a ProfileRecord) and ``diagnostics.json``."""
    name = f"profile {target}"
    context.progress.start(name, f"{target}: profile", None)
    parsed = Target.parse(target)
    backend = backend_for(parsed)
    views, tokens = _request_shape(task)
    inputs = {
        "target": target, "pivot": quantized.digest, "artifacts": {n: c.digest for n, c in compiled.items()}, "views": views, "tokens": tokens,
    }  # fmt: skip

    def produce(directory: Path) -> None:
        bundle = load_bundle(ingested)
        pivot = load_pivot(quantized)
        diagnostics: list[Diagnostic] = []
        if isinstance(backend, MeasuringBackend):
            device, figures = _measured(parsed, held_out, pivot, compiled)
        else:
            device, figures = _predicted(parsed, backend, pivot, quantized, diagnostics)
        latencies = {n: m for n in bundle.components for m in figures if m.name == f"{n}_latency"}
        plan = memory_plan(
            {c.name: c.graph for c in pivot},
            float_bits=HOST_FLOAT_BITS if isinstance(backend, MeasuringBackend) else NPU_FLOAT_BITS,
        )
        figures += story(latencies, components=bundle.components, slices=views, answer_tokens=tokens)
        if not any(m.name == "peak_memory" for m in figures):
            figures.append(plan.peak())
        size = sum(primary_artifact(c).bytes for c in compiled.values())
        figures.append(
            Measurement(
                "artifact_size",
                size,
                "bytes",
                Provenance(ProvenanceKind.MEASURED, "bytes of the primary artifacts"),
            )
        )
        record = ProfileRecord(
            device=device,
            measurements=[to_record(m) for m in figures],
            memory=[MemoryPoint(phase=s.phase, step=s.name, bytes=s.high) for s in plan.steps],
        )
        write_json(directory / "profile.json", record.model_dump())
        write_json(directory / "diagnostics.json", [d.to_json() for d in diagnostics])

    code = ("compress", "profiles", f"targets/{parsed.vendor}", "pocketport")
    return context.record(name, context.store.run("profile", inputs, produce, code=code))


def _request_shape(task: StageResult | None) -> tuple[int, int]:
    """Views and answer tokens of the median request of the task."""
    answers = [a for a in load_answers(task) if "views" in a.figures] if task else []
    if not answers:
        return TYPICAL_VIEWS, TYPICAL_TOKENS
    return (
        max(1, round(statistics.median(a.figures["views"] for a in answers))),
        max(1, round(statistics.median(a.figures["tokens"] for a in answers))),
    )


def _measured(
    target: Target, held_out: StageResult, pivot: ModelBundle, compiled: Mapping[str, StageResult]
) -> tuple[str, list[Measurement]]:
    figures: list[Measurement] = []
    for name, result in compiled.items():
        feeds = CacheConversion.of(pivot[name].graph).stored(load_held_out(held_out, name).feeds[0])
        artifact = primary_artifact(result)
        label = f"{target}: measure {name}"
        figures += call_in_worker(
            "pocketport.stages.profile:measure_in_worker",
            target,
            name,
            artifact,
            feeds,
            label=label,
            limits=LIMITS,
        )
    peaks = [m for m in figures if m.name.endswith("_peak_memory")]
    if peaks:
        highest = max(peaks, key=lambda m: m.value)
        detail = f"highest of the components, one process each: {highest.provenance.detail}"
        figures.append(Measurement("peak_memory", highest.value, "bytes", Provenance(highest.provenance.kind, detail)))
    return "this machine", figures


def measure_in_worker(target: Target, component: str, artifact: Artifact, feeds: Feeds) -> list[Measurement]:
    """Measure one artifact; runs in a fresh worker process, so that its memory is its own."""
    backend = backend_for(target)
    assert isinstance(backend, MeasuringBackend)
    return list(backend.measure(component, artifact, target, feeds))


def _predicted(
    target: Target,
    backend: Backend,
    pivot: ModelBundle,
    quantized: StageResult,
    diagnostics: list[Diagnostic],
) -> tuple[str, list[Measurement]]:
    device = load_device(str(target))
    if device is None:
        diagnostics.append(
            Diagnostic(
                "profile.unknown-device", Severity.WARNING, str(target), "there is no device profile for it, so nothing is predicted",
                "add profiles/devices/<soc>.toml with sourced figures",
            )
        )  # fmt: skip
        return "unknown device", []
    figures = []
    for component in pivot:
        scheme = load_plan(quantized)[component.name].scheme
        estimates = _estimates(target, backend, component.name, quantized, diagnostics)
        # Qualcomm's lowering makes convolutions of them (targets/qualcomm/slow_pools.py).
        graph = graph_features(component.graph, plain_pools=target.vendor != "qualcomm")
        features = ModelFeatures(graph, estimates)
        precision = precision_of(scheme)
        alone = GraphPredictor().predict(features, device, precision, RUNTIME)
        if alone is not None:
            informed = CompilerPredictor().predict(features, device, precision, RUNTIME)
            figures.append(combined(alone, informed).measurement(f"{component.name}_latency"))
        if ESTIMATE in estimates:
            chip = ESTIMATE.removesuffix("_us")
            provenance = Provenance(ProvenanceKind.PREDICTED, f"the vendor compiler's own simulation ({chip})")
            simulated = Measurement(f"{component.name}_compiler_estimate", estimates[ESTIMATE] / 1e3, "ms", provenance)
            figures.append(simulated)
    return device.name, figures


def _estimates(
    target: Target,
    backend: Backend,
    component: str,
    quantized: StageResult,
    diagnostics: list[Diagnostic],
) -> dict[str, float]:
    """The vendor compiler's own estimate, where it has one."""
    if not isinstance(backend, EstimatingBackend):
        return {}
    pivot = quantized.path / "bundle" / f"{component}.onnx"
    try:
        estimates: dict[str, float] = call_in_worker(
            "pocketport.stages.profile:estimate_in_worker",
            target,
            component,
            pivot,
            label=f"{target}: estimate {component}",
            limits=LIMITS,
        )
    except ToolchainError as error:
        diagnostics.append(Diagnostic(f"{target.vendor}.no-estimate", Severity.NOTE, error.where, error.why, error.fix))
        return {}
    return estimates


def estimate_in_worker(target: Target, component: str, pivot: Path) -> dict[str, float]:
    """Ask the compiler for its estimate; runs in the worker process."""
    backend = backend_for(target)
    assert isinstance(backend, EstimatingBackend)
    with TemporaryDirectory(prefix="pocketport-") as work:
        request = CompileRequest(component, pivot, target, Path(work), Path(work))
        return dict(backend.estimate(request, backend.lower(request)))


def to_record(measurement: Measurement) -> MeasurementRecord:
    """The document form."""
    m = measurement
    return MeasurementRecord(
        name=m.name,
        value=float(m.value),
        unit=m.unit,
        provenance=m.provenance.kind.value,
        detail=m.provenance.detail,
        low=m.low,
        high=m.high,
    )


def load_profile(result: StageResult) -> tuple[ProfileRecord, list[Diagnostic]]:
    """Read what `profile_target` wrote."""
    record = ProfileRecord.model_validate_json((result.path / "profile.json").read_text(encoding="utf-8"))
    found = json.loads((result.path / "diagnostics.json").read_text(encoding="utf-8"))
    return record, [Diagnostic(**{**d, "severity": Severity(d["severity"])}) for d in found]
