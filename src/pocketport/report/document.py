"""From a Run to ``run.json`` and ``report.html``."""

import platform
from pathlib import Path
from typing import Literal

from pocketport import __version__
from pocketport.compress.bundle import ModelBundle
from pocketport.files import sha256_path, size_of, write_json
from pocketport.pipeline import Run, TargetRun
from pocketport.profiles.cost import component_cost
from pocketport.report.html import render
from pocketport.report.verdict import gate_document, read_budget
from pocketport.run_document import (
    RUN_FILE,
    ArtifactRecord,
    CacheRecord,
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
    folder_of,
)
from pocketport.stages.compile import load_compiled
from pocketport.stages.condition import load_equivalence, load_rewrites
from pocketport.stages.ingest import load_bundle, load_parity
from pocketport.stages.profile import load_profile
from pocketport.stages.quantize import load_layer_errors, load_plan
from pocketport.stages.verify import load_verified, task_record
from pocketport.store import package_version
from pocketport.tasks import choose_task

PACKAGES = (
    "torch", "numpy", "onnx", "onnx-ir", "onnxruntime", "onnxruntime-qnn", "coreai-core", "coremltools", "ai-edge-litert", "openvino",
)  # fmt: skip


def finish_run(run: Run) -> RunDocument:
    """Gate a profiled run; write ``run.json`` and ``report.html`` into its directory."""
    document = build_document(run)
    budget = run.context.request.budget
    if budget is not None:
        document.verdict = gate_document(document, read_budget(budget), run.context.out)
    write_json(run.context.out / RUN_FILE, document.model_dump(by_alias=True))
    render(document, run.context.out)
    return document


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
