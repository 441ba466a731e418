"""The road: source → bundle (→ conditioned) → statistics → plans → pivots → artifacts → verified, profiled, gated run.

Every step goes through the store, so `port` and the single-stage commands make the same bytes, a second run takes
everything from the cache, and a killed run goes on where it stopped.
"""

import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from pocketport.compress.planning.plan import Plan
from pocketport.diagnostics import Diagnostic, Severity
from pocketport.errors import PocketportError, ToolchainError, UsageError
from pocketport.files import atomic_directory, atomic_file, sha256_path
from pocketport.run_document import folder_of
from pocketport.stages.calibrate import calibrate, check_memory
from pocketport.stages.compile import compile_component, load_compiled
from pocketport.stages.condition import check_equivalence, condition
from pocketport.stages.context import Context
from pocketport.stages.held_out import collect_held_out
from pocketport.stages.ingest import ingest, load_bundle, parity
from pocketport.stages.profile import profile_target
from pocketport.stages.quantize import make_plans, quantize
from pocketport.stages.verify import float_task, target_task, verify_component
from pocketport.store import StageResult
from pocketport.targets.contract import Target
from pocketport.targets.registry import backend_for

STAGES = ("ingest", "calibrate", "quantize", "compile", "verify", "profile")
PARALLEL_TARGETS = 2  # compilers are single-threaded for the most part, and hosts have at least two cores


@dataclass
class TargetRun:
    """What one target came to.

    `stages` are keyed ``quantize``, ``compile/<component>``, ``verify/<component>``, ``task``, ``profile``.
    """

    target: str
    plan: Plan
    diagnostics: list[Diagnostic] = field(default_factory=list)
    stages: dict[str, StageResult] = field(default_factory=dict)

    def compiled(self) -> dict[str, StageResult]:
        """Component → compile stage, of those that compiled."""
        return {k.removeprefix("compile/"): v for k, v in self.stages.items() if k.startswith("compile/")}


@dataclass
class Run:
    """A run as far as it went. `conditioned` is `ingested` where the recipe asks for no conditioning."""

    context: Context
    ingested: StageResult
    parity: StageResult
    conditioned: StageResult
    equivalence: StageResult | None = None
    calibrated: StageResult | None = None
    held_out: StageResult | None = None
    float_task: StageResult | None = None
    targets: dict[str, TargetRun] = field(default_factory=dict)


def run_until(context: Context, last: str) -> Run:
    """Run every stage up to and including `last`.

    Raises:
        UsageError: a target, recipe or data that does not exist (before anything slow happens).
        VerificationError: the parity gate failed, or a step did nothing.
    """
    goal = STAGES.index(last)
    if goal >= STAGES.index("quantize") and not context.request.targets:
        raise UsageError(
            "no target was given", where="--target", fix="name at least one, e.g. --target qualcomm/sm8650"
        )
    for text in context.request.targets:
        target = Target.parse(text)
        backend_for(target).legality(target)
    context.request.save(context.out)
    ingested = ingest(context)
    run = Run(context, ingested, parity(context, ingested), ingested)
    if goal < STAGES.index("calibrate"):
        _copy(ingested.path / "bundle", context.out / "bundle")
        return run
    plans, findings = make_plans(context.request, load_bundle(ingested))
    check_memory(plans)
    run.conditioned = condition(context, ingested)
    if run.conditioned is not ingested:
        run.equivalence = check_equivalence(context, ingested, run.conditioned)
        plans, findings = make_plans(context.request, load_bundle(run.conditioned))
    run.targets = {t: TargetRun(t, plan, list(findings[t])) for t, plan in plans.items()}
    run.calibrated = calibrate(context, run.conditioned, plans)
    if goal == STAGES.index("calibrate"):
        _copy(run.calibrated.path, context.out / "calibration")
        return run
    run.held_out = collect_held_out(context, run.conditioned)
    if goal >= STAGES.index("verify"):
        run.float_task = float_task(context, ingested)
    names = list(load_bundle(run.conditioned).components)
    with ThreadPoolExecutor(PARALLEL_TARGETS) as pool:
        jobs = [pool.submit(_run_target, run, one, names, goal) for one in run.targets.values()]
        for job in jobs:
            job.result()
    if goal >= STAGES.index("profile"):
        for one in run.targets.values():  # in turn: what is measured must not wait for another target's compiler
            _profile(run, one, names)
    return run


def _run_target(run: Run, one: TargetRun, names: Sequence[str], goal: int) -> None:
    """All stages of one target; what a vendor's tool refuses becomes a Diagnostic and the rest goes on."""
    context, target = run.context, one.target
    assert run.calibrated is not None and run.held_out is not None
    held_out = run.held_out
    one.stages["quantize"] = quantize(context, run.conditioned, run.calibrated, held_out, target, one.plan)
    _copy(one.stages["quantize"].path, context.out / folder_of(target) / "pivot")
    missing = backend_for(Target.parse(target)).missing()
    one.diagnostics += missing
    if goal < STAGES.index("compile") or any(d.severity is Severity.ERROR for d in missing):
        return
    for name in names:

        def compile_one(name: str = name) -> StageResult:
            return compile_component(context, target, name, one.stages["quantize"])

        _try(one, f"compile/{name}", compile_one)
        if (compiled := one.stages.get(f"compile/{name}")) is None:
            continue
        result = load_compiled(compiled)
        one.diagnostics += result.diagnostics
        if not result.artifacts:  # refused: the diagnostics name the ops
            del one.stages[f"compile/{name}"]
            continue
        for artifact in result.artifacts:
            _copy(artifact.path, context.out / folder_of(target) / name / artifact.path.name)
        if goal >= STAGES.index("verify"):

            def verify_one(name: str = name, compiled: StageResult = compiled) -> StageResult:
                return verify_component(context, target, name, held_out, one.stages["quantize"], compiled)

            _try(one, f"verify/{name}", verify_one)
    compiled_all = one.compiled()
    complete = set(compiled_all) == set(names)
    if goal >= STAGES.index("verify") and complete:
        _try(
            one,
            "task",
            lambda: target_task(context, target, run.conditioned, one.stages["quantize"], compiled_all),
        )


def _profile(run: Run, one: TargetRun, names: Sequence[str]) -> None:
    """Cost and memory of a target all of whose components were compiled."""
    assert run.held_out is not None
    context, held_out, compiled = run.context, run.held_out, one.compiled()
    if set(compiled) == set(names):
        _try(
            one,
            "profile",
            lambda: profile_target(
                context, one.target, run.conditioned, held_out, one.stages["quantize"], compiled, one.stages.get("task")
            ),
        )


def _try(one: TargetRun, key: str, stage: Callable[[], StageResult]) -> None:
    try:
        one.stages[key] = stage()
    except PocketportError as error:
        code = f"{Target.parse(one.target).vendor}.{key.partition('/')[0]}-failed"
        kind = "the toolchain" if isinstance(error, ToolchainError) else "Pocketport"
        one.diagnostics.append(Diagnostic(code, Severity.ERROR, error.where, f"{kind} stopped: {error.why}", error.fix))


def _copy(source: Path, destination: Path) -> None:
    """Bring a stage's output into the run's directory, unless it is there already."""
    if destination.exists() and sha256_path(destination) == sha256_path(source):
        return
    if source.is_dir():
        with atomic_directory(destination) as temporary:
            shutil.copytree(source, temporary, dirs_exist_ok=True)
    else:
        with atomic_file(destination) as temporary:
            shutil.copyfile(source, temporary)
