"""From a Run to ``run.json`` and ``report.html``."""

import platform
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from pocketport import __version__
from pocketport.calibration.sources.rendered_text import RenderedText
from pocketport.compress.bundle import ModelBundle
from pocketport.compress.ingest import REFERENCE
from pocketport.errors import InputError, UsageError
from pocketport.files import sha256_path, size_of, write_json
from pocketport.pipeline import Run, TargetRun, folder_of
from pocketport.profiles.budget import Budget, default_budget, load_budget
from pocketport.profiles.cost import component_cost
from pocketport.profiles.gate import gate
from pocketport.profiles.measurement import Measurement, Provenance, ProvenanceKind
from pocketport.profiles.units import format_quantity
from pocketport.report.html import shown_indices, write_report
from pocketport.report.requests import request_figures
from pocketport.run_document import (
    ArtifactRecord,
    CacheRecord,
    CheckRecord,
    ComponentRecord,
    ConditioningRecord,
    DiagnosticRecord,
    ModelComponent,
    ModelRecord,
    OffloadRecord,
    RewriteRecord,
    RunDocument,
    StageRecord,
    TargetRecord,
    TensorError,
    VerdictRecord,
)
from pocketport.stages.compile import load_compiled
from pocketport.stages.condition import load_equivalence, load_rewrites
from pocketport.stages.ingest import load_bundle, load_parity
from pocketport.stages.profile import load_profile
from pocketport.stages.quantize import load_layer_errors, load_plan
from pocketport.stages.verify import load_verified, task_record
from pocketport.store import package_version
from pocketport.targets.contract import Target
from pocketport.tasks import choose_task
from pocketport.tasks.read_text import HELD_OUT_SEED

RUN_FILE, REPORT_FILE = "run.json", "report.html"
PACKAGES = (
    "torch", "numpy", "onnx", "onnx-ir", "onnxruntime", "onnxruntime-qnn", "coreai-core", "coremltools", "ai-edge-litert", "openvino",
)  # fmt: skip
DEFAULT_BUDGET = "default"


def finish_run(run: Run) -> RunDocument:
    """Gate a profiled run; write ``run.json`` and ``report.html`` into its directory."""
    document = build_document(run)
    budget = run.context.request.budget
    if budget is not None:
        document.verdict = gate_document(document, read_budget(budget), run.context.out)
    write_json(run.context.out / RUN_FILE, document.model_dump(by_alias=True))
    render(document, run.context.out)
    return document


def read_budget(name: str) -> Budget:
    """``default`` or a file."""
    return default_budget() if name == DEFAULT_BUDGET else load_budget(Path(name))


def build_document(run: Run) -> RunDocument:
    """Everything that the stages found out, without a verdict."""
    bundle = load_bundle(run.ingested)
    metric = choose_task(bundle, run.context.request).metric
    components = []
    for component in bundle:
        cost = component_cost(component.graph, float_bits=32)
        components.append(
            ModelComponent(name=component.name, parameters=cost.parameters, macs=cost.macs, bytes=4 * cost.parameters)
        )
    return RunDocument(
        model=ModelRecord(
            name=bundle.name,
            parameters=_parameters(bundle),
            family=bundle.family,
            sha256=bundle.sha256,
            components=components,
            parity=load_parity(run.parity),
        ),
        recipe=run.context.request.recipe,
        conditioning=_conditioning(run),
        targets=[_target(run, one, metric) for one in run.targets.values()],
        verdict=VerdictRecord(status="none"),
        environment=_environment(),
        stages=[
            StageRecord(name=n, key=r.key, digest=r.digest, seconds=r.seconds)
            for n, r in sorted(run.context.results.items())
        ],
    )


def _conditioning(run: Run) -> ConditioningRecord | None:
    if run.equivalence is None:
        return None
    kept = RewriteRecord.model_fields
    rewrites = [RewriteRecord(**{k: r[k] for k in kept}) for r in load_rewrites(run.conditioned)]
    return ConditioningRecord(rewrites=rewrites, sqnr_db=load_equivalence(run.equivalence))


def _parameters(bundle: ModelBundle) -> int:
    """Elements of all weights; prefill and decode name the same ones, which count once."""
    sizes = {
        str(value.name): tensor.size
        for component in bundle
        for value in component.graph.graph.initializers.values()
        if (tensor := value.const_value) is not None and tensor.dtype.is_floating_point()
    }
    return sum(sizes.values())


def _environment() -> dict[str, str]:
    versions = {name: package_version(name) for name in PACKAGES}
    return {
        "pocketport": __version__,
        "python": platform.python_version(),
        "system": platform.platform(terse=True),
        **versions,
    }


def _target(run: Run, one: TargetRun, metric: str) -> TargetRecord:
    plan = load_plan(one.stages["quantize"])
    layers = load_layer_errors(one.stages["quantize"])
    components = []
    for component in plan:
        name = component.component
        record = ComponentRecord(
            name=name, scheme=component.scheme, pivot_bytes=component.bytes_after,
            layers=[TensorError(tensor=t, sqnr_db=db) for t, db in layers.get(name, [])],
        )  # fmt: skip
        if (compiled := one.stages.get(f"compile/{name}")) is not None:
            _add_compiled(record, run, one)
            record.seconds = compiled.seconds
        if (verified := one.stages.get(f"verify/{name}")) is not None:
            primary = {a.kind for a in record.artifacts if a.primary}
            results = load_verified(verified)
            record.verify = next((v for v in results if v.kind in primary), None)
            record.verify_others = [v for v in results if v is not record.verify]
        components.append(record)
    diagnostics = list(one.diagnostics)
    profile = None
    if "profile" in one.stages:
        profile, told = load_profile(one.stages["profile"])
        diagnostics += told
    task = None
    if "task" in one.stages and run.float_task is not None:
        task = task_record(one.target, metric, run.float_task, one.stages["task"], one.compiled())
    cache = None
    if plan.cache is not None:
        cache = CacheRecord(name=plan.cache.name, bytes=plan.cache.bytes_after, float_bytes=plan.cache.bytes_before)
    return TargetRecord(
        id=one.target, status=_status(one, len(components)), components=components, cache=cache, task=task, profile=profile,
        diagnostics=[DiagnosticRecord.model_validate(d.to_json()) for d in dict.fromkeys(diagnostics)],
    )  # fmt: skip


def _status(one: TargetRun, components: int) -> Literal["ok", "partial", "failed"]:
    compiled, verified = len(one.compiled()), sum(k.startswith("verify/") for k in one.stages)
    if compiled == verified == components and {"task", "profile"} <= one.stages.keys():
        return "ok"
    return "partial" if compiled else "failed"


def _add_compiled(record: ComponentRecord, run: Run, one: TargetRun) -> None:
    result = load_compiled(one.stages[f"compile/{record.name}"])
    folder = Path(folder_of(one.target)) / record.name
    record.artifacts = [
        ArtifactRecord(
            path=(folder / a.path.name).as_posix(),
            kind=a.kind,
            bytes=a.bytes,
            sha256=a.sha256,
            primary=a.primary,
            facts=dict(a.facts),
        )
        for a in result.artifacts
    ]
    for artifact in record.artifacts:
        path = run.context.out / artifact.path
        assert size_of(path) == artifact.bytes and sha256_path(path) == artifact.sha256, artifact.path
    if result.offload:
        o = result.offload
        record.offload = OffloadRecord(
            npu_ops=o.npu_ops, total_ops=o.total_ops, source=o.source, elsewhere=list(o.elsewhere)
        )
    record.estimates = dict(result.estimates)


def gate_document(document: RunDocument, budget: Budget, directory: Path) -> VerdictRecord:
    """Hold a run's figures, and those of the budget's requests, against a budget; `directory` is the run's."""
    figures = {t.id: run_figures(t) for t in document.targets}
    requests = request_figures(document, budget, figures, directory)
    verdict = gate(budget, {str(Target.parse(name)): known for name, known in figures.items()}, requests)
    checks = [
        CheckRecord(
            target=c.target, scenario=c.scenario, name=c.name, limit=format_quantity(c.limit, c.unit), value=c.value, unit=c.unit,
            shown="–" if c.value is None else format_quantity(c.value, c.unit), provenance=c.provenance or "", status=c.status.value,
            hard=c.hard, reason=c.reason,
        )
        for c in verdict.checks
    ]  # fmt: skip
    return VerdictRecord(status=verdict.status.value, checks=checks)


def run_figures(target: TargetRecord) -> dict[str, Measurement]:
    """All that a budget may speak about: profile figures, score drop, offload share."""
    figures = {
        m.name: Measurement(m.name, m.value, m.unit, Provenance(ProvenanceKind(m.provenance), m.detail), m.low, m.high)
        for m in (target.profile.measurements if target.profile else [])
    }
    if target.task:
        drop = 100 * (target.task.float_value - target.task.value)
        detail = f"{target.task.engine}, n = {target.task.n}"
        figures["score_drop"] = Measurement(
            "score_drop", drop, "points", Provenance(ProvenanceKind(target.task.provenance), detail)
        )
    offloads = [c.offload for c in target.components if c.offload]
    if offloads and len(offloads) == len(target.components):
        share = sum(o.npu_ops for o in offloads) / max(1, sum(o.total_ops for o in offloads))
        source = Provenance(ProvenanceKind.PREDICTED, offloads[0].source)
        figures["npu_offload"] = Measurement("npu_offload", share, "share", source)
    return figures


def load_document(directory: Path) -> RunDocument:
    """Read a run directory's ``run.json``.

    Raises:
        UsageError: there is none yet.
        InputError: it is damaged, or of another schema version.
    """
    path = directory / RUN_FILE
    if not path.is_file():
        raise UsageError(
            "it holds no finished run", where=str(directory), fix="run `pocketport port … --out DIR` first"
        )
    try:
        return RunDocument.model_validate_json(path.read_text(encoding="utf-8"))
    except (ValidationError, UnicodeDecodeError) as error:
        raise InputError(
            f"not a {RunDocument.model_fields['schema_name'].default} document: {error}",
            where=str(path),
            fix="run again",
        ) from error


def render(document: RunDocument, directory: Path) -> Path:
    """Write ``report.html``; the reference model's held-out images are drawn again from their seeds."""
    images = {}
    if document.model.name == REFERENCE:
        source = RenderedText(seed=HELD_OUT_SEED, fonts="held_out")
        images = {i: source[i].image for i in shown_indices(document)}
    path = directory / REPORT_FILE
    write_report(document, images, path)
    return path
