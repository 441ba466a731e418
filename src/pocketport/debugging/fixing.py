"""``debug --fix``: remedies tried and measured, what paid as a recipe, and that recipe on the vendor's own runtime."""

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import yaml

from pocketport.compress.diagnosis.repair import Trial, repair
from pocketport.compress.planning.plan import Plan
from pocketport.compress.recipe import SUFFIX, Recipe, Rule, load_recipe, with_rules
from pocketport.debugging.diagnose import Diagnosis
from pocketport.debugging.document import RepairRecord, TrialRecord
from pocketport.debugging.opened import OpenedRun, OpenedTarget
from pocketport.errors import PocketportError, UsageError
from pocketport.files import write_text
from pocketport.run_document import folder_of
from pocketport.stages.calibrate import load_statistics
from pocketport.stages.compile import compile_component, load_compiled
from pocketport.stages.quantize import quantize
from pocketport.stages.verify import load_verified, verify_component
from pocketport.store import StageResult


def fix(run: OpenedRun, target: OpenedTarget, diagnosis: Diagnosis) -> None:
    """Try every remedy of the worst tensors; the diagnosis' document gets `repairs`, and `recipe` where something paid."""
    name, document = target.record.id, diagnosis.document
    plans = {name: target.plan, **_candidate_plans(diagnosis)}
    calibrated = run.calibrated(plans)
    statistics = load_statistics(calibrated)
    kept: list[Trial] = []
    for component, bench in diagnosis.benches.items():
        candidates = diagnosis.candidates[component]
        key = f"fix {name} {component}"
        run.context.progress.start(key, f"{name}: remedies for {component}", sum(len(r) for _, r in candidates))

        def advance(done: int, key: str = key) -> None:
            run.context.progress.advance(key, done)

        trials = repair(bench, candidates, statistics, run.samples(component), advance)
        run.context.progress.finish(key, f"{len(trials)} tried, {sum(t.kept for t in trials)} kept")
        if trials:
            document.repairs.append(_record(component, trials))
        kept += [t for t in trials if t.kept]
    if not kept:
        return
    rules = [rule for trial in kept for rule in trial.remedy.rules]
    recipe = with_rules(load_recipe(run.context.request.recipe), name, rules)
    path = run.context.out / f"fixed-{folder_of(name)}{SUFFIX}"
    write_text(path, recipe_text(recipe, name, kept))
    document.recipe = str(path)
    plan = next(iter(diagnosis.benches.values())).plan(rules)
    quantized = quantize(run.context, run.ingested, calibrated, run.held_out, name, plan)
    for record in document.repairs:
        if any(t.kept for t in record.trials):
            _execute(run, target, record, quantized)


def _candidate_plans(diagnosis: Diagnosis) -> dict[str, Plan]:
    """A plan a remedy: calibration must keep what any of them needs. What can't be planned is told when it is tried."""
    plans = {}
    for component, candidates in diagnosis.candidates.items():
        for tensor, remedies in candidates:
            for remedy in remedies:
                with suppress(UsageError):
                    plans[f"{component}/{tensor}/{remedy.name}"] = diagnosis.benches[component].plan(remedy.rules)
    return plans


def _record(component: str, trials: Sequence[Trial]) -> RepairRecord:
    first, kept = trials[0].before, [t for t in trials if t.kept]
    last = kept[-1].after if kept and kept[-1].after else first
    return RepairRecord(
        component=component, before_db=round(first.db, 2), after_db=round(last.db, 2), bytes_before=first.bytes, bytes_after=last.bytes,
        trials=[
            TrialRecord(
                component=component, tensor=t.tensor, remedy=t.remedy.name, before_db=round(t.before.db, 2),
                after_db=None if t.after is None else round(t.after.db, 2), bytes_before=t.before.bytes,
                bytes_after=None if t.after is None else t.after.bytes, kept=t.kept, why=t.why,
            )
            for t in trials
        ],
    )  # fmt: skip


def _execute(run: OpenedRun, target: OpenedTarget, record: RepairRecord, quantized: StageResult) -> None:
    """The repaired component compiled and executed; what the vendor's compiler refuses is told, not raised."""
    name, component = target.record.id, record.component
    known = next(c for c in target.record.components if c.name == component)
    if known.verify is None:
        return
    record.executed_before_db = known.verify.sqnr_db
    try:
        compiled = compile_component(run.context, name, component, quantized)
        primary = {a.kind for a in load_compiled(compiled).artifacts if a.primary}
        if not primary:
            record.refused = "; ".join(d.why for d in load_compiled(compiled).diagnostics if d.severity == "error")
            return
        verified = verify_component(run.context, name, component, run.held_out, quantized, compiled)
    except PocketportError as error:
        record.refused = error.why
        return
    record.executed_after_db = next((v.sqnr_db for v in load_verified(verified) if v.kind in primary), None)


def recipe_text(recipe: Recipe, target: str, kept: Sequence[Trial]) -> str:
    """The recipe as YAML, each remedy under a comment with what it brought.

    Args:
        recipe: whole, the remedies' rules last in the section of the target.
        target: ``vendor/soc[@sdk]``.
        kept: the remedies, in the order of their rules.
    """
    identity = target.partition("@")[0]
    document = recipe.model_dump(exclude_defaults=True)
    document["name"] = f"{recipe.name}-fixed"
    document["description"] = f"{recipe.name}, with the remedies that paid on {target}."
    sections: dict[str, Any] = document.pop("targets")
    count = sum(len(t.remedy.rules) for t in kept)
    own = sections.pop(identity)["rules"][:-count]
    if sections:
        document["targets"] = sections
    lines = [
        "# Written by `pocketport debug --fix`: SQNR at each component's worst output, measured on held-out samples.",
        yaml.safe_dump({"version": 1, **document}, sort_keys=False, allow_unicode=True, width=1000).rstrip(),
        *([] if sections else ["targets:"]),
        f"  {identity}:",
        "    rules:",
        *(f"      - {_flow(rule)}" for rule in own),
    ]
    for trial in kept:
        after = trial.after or trial.before
        lines.append(
            f"      # {trial.tensor}: {trial.remedy.name}, {trial.before.db:.2f} → {after.db:.2f} dB"
            f" ({after.bytes - trial.before.bytes:+,} bytes)"
        )
        lines += [f"      - {_flow(_plain(rule))}" for rule in trial.remedy.rules]
    return "\n".join(lines) + "\n"


def _plain(rule: Rule) -> dict[str, Any]:
    """What the rule sets; an empty pattern is that of graph inputs, which no node makes."""
    return rule.model_dump(exclude_defaults=True)


def _flow(rule: dict[str, Any]) -> str:
    text: str = yaml.safe_dump(rule, default_flow_style=True, sort_keys=False, allow_unicode=True, width=1000)
    return text.strip()
