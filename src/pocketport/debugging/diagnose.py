"""From an opened run to the document: every figure of one target."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pocketport.calibration.statistics import Statistics
from pocketport.compress.diagnosis.remedies import Remedy, remedies
from pocketport.compress.diagnosis.repair import Workbench
from pocketport.compress.diagnosis.samples import Samples, least_db, noise_db
from pocketport.compress.diagnosis.switches import Influences, Switch, SwitchedGraph, influences
from pocketport.compress.diagnosis.tensors import Fit, FloatProbe, TensorError, fits, tensor_errors
from pocketport.compress.pivot.apply import float_graph
from pocketport.compress.planning.plan import ComponentPlan, TensorKind
from pocketport.compress.recipe import load_recipe
from pocketport.debugging.attribution import Attribution, Outcome, attribute, combinations
from pocketport.debugging.document import (
    AttributionRecord,
    ComponentDebug,
    OutcomeRecord,
    OutputRecord,
    SizeRecord,
    TargetDebug,
    TensorRecord,
    WorstRecord,
)
from pocketport.debugging.opened import OpenedRun, OpenedTarget
from pocketport.errors import UsageError
from pocketport.stages.calibrate import load_statistics
from pocketport.targets.contract import Target
from pocketport.targets.registry import backend_for
from pocketport.tasks import choose_task


@dataclass(frozen=True)
class Examined:
    """One component: its tensors, what each costs at the outputs, and the means to look closer."""

    component: str
    plan: ComponentPlan
    graph: SwitchedGraph
    probe: FloatProbe
    samples: Samples
    errors: list[TensorError]
    influences: Influences

    def share(self, error: TensorError) -> float:
        """Noise at the worst output with this tensor's rounding alone, over that with all of them."""
        everything = self.influences.everything[self.influences.worst]
        return self.influences.alone[error.switch] / everything if everything else 0.0

    def switch(self, error: TensorError) -> Switch:
        """The tensors that are rounded along with it."""
        return self.graph.switches[error.switch]

    def gain_db(self, error: TensorError) -> float:
        """What the worst output gains without this rounding."""
        others = [i for i in range(len(self.graph.switches)) if i != error.switch]
        without = self.graph.noise(self.samples, others)
        return least_db(without) - least_db(self.influences.everything)


@dataclass(frozen=True)
class Diagnosis:
    """One target: the document, and for each of its worst tensors what `--fix` needs."""

    document: TargetDebug
    attribution: Attribution
    benches: dict[str, Workbench]
    candidates: dict[str, list[tuple[str, list[Remedy]]]]


def diagnose(
    run: OpenedRun, target: OpenedTarget, components: Sequence[str] | None, *, top: int, samples: int
) -> Diagnosis:
    """Everything about one target of a run.

    Args:
        run: the run.
        target: of it.
        components: to look into; all of them when None.
        top: how many of the worst tensors.
        samples: of the end-to-end runs.

    Raises:
        UsageError: there is no such component, or nothing of it is quantized.
    """
    name = target.record.id
    quantized = [c.component for c in target.plan if any(t.quantized for t in c.tensors)]
    if unknown := sorted(set(components or ()) - set(quantized)):
        raise UsageError(
            f"no quantized component {unknown[0]!r}",
            where=f"--component, {name}",
            fix=f"name one of {', '.join(quantized)}",
        )
    attribution = _attribution(run, target, samples)
    statistics = load_statistics(run.calibrated({name: target.plan}))
    examined = [_examine(run, target, c, statistics) for c in components or quantized]
    weights = {e.component: _end_share(attribution, e.component) for e in examined}
    pairs = sorted(_leading(examined), key=lambda p: -p[0].share(p[1]) * weights[p[0].component])[:top]
    bench = _Benches(run, target)
    worst: list[WorstRecord] = []
    candidates: dict[str, list[tuple[str, list[Remedy]]]] = {}
    for e in examined:
        chosen = [error for other, error in pairs if other is e]
        found = fits(e.probe, [error.plan for error in chosen], e.samples.feeds)
        for error in chosen:
            fitted = found[error.plan.tensor]
            could = _remedies(bench[e.component], e, error, fitted)
            candidates.setdefault(e.component, []).append((error.plan.tensor, could))
            worst.append(_worst(e, error, fitted, statistics, could))
    position = {(e.component, error.plan.tensor): i for i, (e, error) in enumerate(pairs)}
    worst.sort(key=lambda w: position[w.component, w.tensor])
    document = TargetDebug(
        id=name,
        attribution=_attribution_record(attribution),
        components=[_component(target, e, weights[e.component]) for e in examined],
        worst=worst,
        tensors=[_tensor(e, error) for e in examined for error in e.errors],
    )
    return Diagnosis(document, attribution, bench.made, candidates)


class _Benches:
    """A workbench a component, made when it is asked for."""

    def __init__(self, run: OpenedRun, target: OpenedTarget) -> None:
        self._run = run
        self._target = Target.parse(target.record.id)
        self._recipe = load_recipe(run.context.request.recipe)
        self._legality = backend_for(self._target).legality(self._target)
        self.made: dict[str, Workbench] = {}

    def __getitem__(self, component: str) -> Workbench:
        if component not in self.made:
            self.made[component] = Workbench(
                self._run.bundle, self._recipe, str(self._target), self._legality, component, self._run.calibration
            )
        return self.made[component]


def _remedies(bench: Workbench, e: Examined, error: TensorError, fit: Fit) -> list[Remedy]:
    columns, leader = 0, e.switch(error).leader
    if leader.kind is TensorKind.WEIGHT:
        shape = e.probe.real(leader.tensor).shape
        columns = math.prod(shape) // shape[leader.channel_axis or 0]
    return remedies(e.component, e.switch(error), bench.legality, fit=fit, columns=columns)


def _attribution(run: OpenedRun, target: OpenedTarget, samples: int) -> Attribution:
    key, name = f"attribution {target.record.id}", target.record.id
    total = len(combinations(frozenset(run.bundle.components)))
    run.context.progress.start(key, f"{name}: the whole model, component by component", total)
    task = choose_task(run.bundle, run.context.request)
    found = attribute(run.bundle, target.pivot, task, samples, lambda done: run.context.progress.advance(key, done))
    run.context.progress.finish(key, f"{found.samples} samples")
    return found


def _examine(run: OpenedRun, target: OpenedTarget, component: str, statistics: Statistics) -> Examined:
    plan, reference = target.plan[component], float_graph(run.bundle, target.plan, statistics, component)
    pivot, samples = target.pivot[component].graph, run.samples(component)
    graph = SwitchedGraph(reference, pivot, plan)
    key = f"tensors {target.record.id} {component}"
    run.context.progress.start(key, f"{target.record.id}: {component}, tensor by tensor", len(graph.switches))
    probe = FloatProbe(reference, pivot, plan, target.encodings)
    errors = tensor_errors(probe, pivot, samples.feeds)
    found = influences(graph, samples, lambda done: run.context.progress.advance(key, done))
    run.context.progress.finish(key, f"{len(errors)} tensors")
    return Examined(component, plan, graph, probe, samples, errors, found)


def _end_share(attribution: Attribution, component: str) -> float:
    """Of the end-to-end noise, what the component makes when it alone is quantized."""
    everything = attribution.everything.noise
    return attribution.alone[component].noise / everything if everything else 0.0


def _leading(examined: Iterable[Examined]) -> list[tuple[Examined, TensorError]]:
    """Of each switch its worst tensor."""
    found: dict[tuple[str, int], tuple[Examined, TensorError]] = {}
    for e in examined:
        for error in e.errors:
            known = found.get((e.component, error.switch))
            if known is None or error.local_db < known[1].local_db:
                found[e.component, error.switch] = (e, error)
    return list(found.values())


def _tensor(e: Examined, error: TensorError) -> TensorRecord:
    plan = error.plan
    return TensorRecord(
        component=e.component, tensor=plan.tensor, kind=plan.kind.value, node=plan.node, op=plan.op, scheme=plan.scheme,
        dtype=plan.dtype, how=plan.algorithm, local_db=round(error.local_db, 2), cumulative_db=round(error.cumulative_db, 2),
        share=round(e.share(error), 6),
    )  # fmt: skip


def _worst(e: Examined, error: TensorError, fit: Fit, statistics: Statistics, could: Sequence[Remedy]) -> WorstRecord:
    seen = statistics.histograms.get(f"{e.component}/{error.plan.tensor}")
    return WorstRecord(
        **_tensor(e, error).model_dump(), gain_db=round(e.gain_db(error), 2), low=fit.low, high=fit.high,
        calibrated_low=seen.minimum if seen else None, calibrated_high=seen.maximum if seen else None,
        chosen_low=fit.chosen_low, chosen_high=fit.chosen_high, clipped=fit.clipped, levels=fit.levels, of_levels=fit.of_levels,
        edges=fit.edges.tolist(), before=fit.before.tolist(), after=fit.after.tolist(), remedies=[r.name for r in could],
    )  # fmt: skip


def _component(target: OpenedTarget, e: Examined, share: float) -> ComponentDebug:
    record = next(c for c in target.record.components if c.name == e.component)
    verified = record.verify
    executed = verified.outputs if verified else {}
    device = [a.bytes for a in record.artifacts if a.primary]
    return ComponentDebug(
        name=e.component, scheme=record.scheme, db=round(least_db(e.influences.everything), 2),
        activations_db=round(least_db(e.influences.activations), 2), constants_db=round(least_db(e.influences.constants), 2),
        outputs=[
            OutputRecord(output=key, pivot_db=round(noise_db(noise), 2), executed_db=executed.get(key))
            for key, noise in e.influences.everything.items()
        ],
        sizes=_sizes(e.plan), engine=verified.engine if verified else "", provenance=verified.provenance if verified else None,
        executed_to_pivot_db=verified.pivot_db if verified else None, device_bytes=sum(device) if device else None,
        share=round(share, 6),
    )  # fmt: skip


def _sizes(plan: ComponentPlan) -> list[SizeRecord]:
    sizes: dict[str, SizeRecord] = {}
    for tensor in plan.tensors:
        if tensor.kind is not TensorKind.ACTIVATION:
            record = sizes.setdefault(
                tensor.kind.value, SizeRecord(kind=tensor.kind.value, tensors=0, float_bytes=0, packed_bytes=0)
            )
            record.tensors += 1
            record.float_bytes += tensor.bytes_before
            record.packed_bytes += tensor.bytes_after
    return sorted(sizes.values(), key=lambda r: -r.float_bytes)


def _outcome(found: Outcome) -> OutcomeRecord:
    return OutcomeRecord(score=round(found.score, 4), db=round(noise_db(found.noise), 2))


def _attribution_record(found: Attribution) -> AttributionRecord:
    return AttributionRecord(
        samples=found.samples, metric=found.metric, ends=list(found.ends), float_score=round(found.float_score, 4),
        everything=_outcome(found.everything), alone={n: _outcome(o) for n, o in found.alone.items()},
        all_but={n: _outcome(o) for n, o in found.all_but.items()},
    )  # fmt: skip
