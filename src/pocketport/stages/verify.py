"""Stage 5: every artifact is executed with its vendor's runtime: SQNR per component, and the whole model's task score."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np

from pocketport.calibration.metrics import EXACT_DB, sqnr_db
from pocketport.compress.cache.float_cache import CacheConversion
from pocketport.compress.executors.ort_executor import OrtExecutor
from pocketport.compress.graph import load_graph
from pocketport.errors import VerificationError
from pocketport.files import write_json
from pocketport.remote import remote_executors
from pocketport.run_document import ReadSample, TaskRecord, VerifyRecord
from pocketport.stages.compile import load_compiled
from pocketport.stages.context import Context
from pocketport.stages.held_out import HeldOut, load_held_out
from pocketport.stages.ingest import load_bundle
from pocketport.store import StageResult
from pocketport.targets.contract import Artifact, Target
from pocketport.targets.registry import backend_for
from pocketport.tasks import choose_task
from pocketport.tasks.base import Answer, character_error_rate, mean_score
from pocketport.workers import Limits

LIMITS = Limits(seconds=1800, memory_bytes=12 << 30)
SHOWN_SAMPLES = 12
CODE = ("compress", "calibration", "pocketport")


def verify_component(
    context: Context, target: str, component: str, held_out: StageResult, quantized: StageResult, compiled: StageResult
) -> StageResult:
    """``verify.json``: one VerifyRecord per artifact of the component that a runtime on this host can execute."""
    name = f"verify {target} {component}"
    context.progress.start(name, f"{target}: execute {component}", None)
    parsed = Target.parse(target)
    inputs = {
        "target": target, "component": component, "held_out": held_out.digest, "pivot": quantized.digest, "artifacts": compiled.digest,
    }  # fmt: skip

    def produce(directory: Path) -> None:
        samples = load_held_out(held_out, component)
        pivot = quantized.path / "bundle" / f"{component}.onnx"
        executable = [a for a in load_compiled(compiled).artifacts if a.kind in backend_for(parsed).engines]
        records = [_verify_artifact(parsed, component, artifact, pivot, samples) for artifact in executable]
        write_json(directory / "verify.json", [r.model_dump() for r in records])

    code = (*CODE, f"targets/{parsed.vendor}")
    return context.record(name, context.store.run("verify", inputs, produce, code=code))


def _verify_artifact(target: Target, component: str, artifact: Artifact, pivot: Path, samples: HeldOut) -> VerifyRecord:
    engine, provenance = backend_for(target).engines[artifact.kind]
    quantized, cache = OrtExecutor(pivot), CacheConversion.of(load_graph(pivot))
    feeds = [cache.stored(f) for f in samples.feeds]
    with remote_executors(target, {component: artifact}, {component: pivot}, limits=LIMITS) as executors:
        results = [cache.restored(executors[component].run(f)) for f in feeds]
    simulated = [cache.restored(quantized.run(f)) for f in feeds]
    outputs, against_pivot = {}, []
    for key in samples.outputs[0]:
        where = f"{target} {component} {artifact.kind}, output {key}"
        if any(key not in r for r in results):
            raise VerificationError(
                "the artifact has no such output", where=where, fix="compile again; the lowering lost it"
            )
        got = samples.used(results, key)
        if not np.isfinite(got).all():
            raise VerificationError(
                "it computes NaN or infinity", where=where, fix="keep the op that overflows in float"
            )
        outputs[key] = min(EXACT_DB, sqnr_db(samples.used(samples.outputs, key), got))
        against_pivot.append(min(EXACT_DB, sqnr_db(samples.used(simulated, key), got)))
    return VerifyRecord(
        engine=engine, kind=artifact.kind, provenance=provenance, sqnr_db=round(min(outputs.values()), 2),
        pivot_db=round(min(against_pivot), 2), outputs={k: round(v, 2) for k, v in outputs.items()}, n=len(samples.feeds),
    )  # fmt: skip


def load_verified(result: StageResult) -> list[VerifyRecord]:
    """Read ``verify.json``."""
    return [
        VerifyRecord.model_validate(r) for r in json.loads((result.path / "verify.json").read_text(encoding="utf-8"))
    ]


def float_task(context: Context, ingested: StageResult) -> StageResult:
    """``answers.json``: what the float graphs answer, on as many samples as any target will be asked."""
    bundle = load_bundle(ingested)
    task = choose_task(bundle, context.request)
    count = min(len(task), max(context.request.task_samples, context.request.emulated_task_samples))
    context.progress.start("float task", f"float {task.name} on {count} samples", count)
    inputs = {"bundle": ingested.digest, "task": task.fingerprint, "count": count}

    def produce(directory: Path) -> None:
        executors = {component.name: OrtExecutor(component.graph, optimize=True) for component in bundle}
        answers = task.evaluate(executors, count, lambda done: context.progress.advance("float task", done))
        write_json(directory / "answers.json", [_stable(a) for a in answers])

    return context.record(
        "float task", context.store.run("task", inputs, produce, code=CODE, packages=("onnxruntime",))
    )


def target_task(
    context: Context,
    target: str,
    ingested: StageResult,
    quantized: StageResult,
    compiled: Mapping[str, StageResult],
) -> StageResult:
    """``answers.json``: what the compiled model answers, executed by the vendor's runtime, all components chained."""
    parsed = Target.parse(target)
    bundle = load_bundle(ingested)
    task = choose_task(bundle, context.request)
    artifacts = {name: primary_artifact(result) for name, result in compiled.items()}
    provenance = {backend_for(parsed).engines[a.kind][1] for a in artifacts.values()}
    emulated = "emulated" in provenance
    wanted = context.request.emulated_task_samples if emulated else context.request.task_samples
    count = min(len(task), wanted)
    name = f"task {target}"
    context.progress.start(name, f"{target}: {task.name} on {count} samples ({', '.join(sorted(provenance))})", count)
    inputs = {
        "target": target, "bundle": ingested.digest, "task": task.fingerprint, "count": count,
        "artifacts": {n: a.sha256 for n, a in artifacts.items()},
    }  # fmt: skip

    def produce(directory: Path) -> None:
        pivots = {n: quantized.path / "bundle" / f"{n}.onnx" for n in artifacts}
        with remote_executors(parsed, artifacts, pivots, limits=LIMITS) as executors:
            answers = task.evaluate(executors, count, lambda done: context.progress.advance(name, done))
        write_json(directory / "answers.json", [_stable(a) for a in answers])

    return context.record(name, context.store.run("task", inputs, produce, code=(*CODE, f"targets/{parsed.vendor}")))


def primary_artifact(result: StageResult) -> Artifact:
    """The artifact that the task score runs on."""
    return next(a for a in load_compiled(result).artifacts if a.primary)


def _stable(answer: Answer) -> dict[str, object]:
    """Without timings, so that the same answers give the same bytes."""
    kept = {k: v for k, v in answer.figures.items() if not k.endswith("_ms")}
    return {**asdict(answer), "figures": kept}


def load_answers(result: StageResult) -> list[Answer]:
    """Read ``answers.json``."""
    return [Answer(**a) for a in json.loads((result.path / "answers.json").read_text(encoding="utf-8"))]


def task_record(
    target: str, metric: str, floats: StageResult, answered: StageResult, compiled: Mapping[str, StageResult]
) -> TaskRecord:
    """Score of a target beside float on the same samples; the engines named are those that the task ran on."""
    known = backend_for(Target.parse(target)).engines
    answers = load_answers(answered)
    reference = load_answers(floats)[: len(answers)]
    engines = sorted({known[primary_artifact(result).kind] for result in compiled.values()})
    extra: dict[str, float] = {}
    if any(a.expected for a in answers):
        extra = {
            "cer": round(character_error_rate(answers), 4),
            "float_cer": round(character_error_rate(reference), 4),
        }
        extra["agrees_with_float"] = round(
            sum(a.text == r.text for a, r in zip(answers, reference, strict=True)) / len(answers), 4
        )
    return TaskRecord(
        metric=metric, value=round(mean_score(answers), 4), float_value=round(mean_score(reference), 4), n=len(answers),
        provenance=engines[0][1], engine=", ".join(e for e, _ in engines), extra=extra,
        samples=[
            ReadSample(index=a.index, expected=a.expected, float_text=r.text, text=a.text)
            for a, r in list(zip(answers, reference, strict=True))[:SHOWN_SAMPLES] if a.expected
        ],
    )  # fmt: skip
