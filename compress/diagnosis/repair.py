"""Trying remedies: each one is applied to the component and measured at its outputs; what pays is kept."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pocketport.calibration.statistics import Statistics
from pocketport.compress.bundle import ModelBundle
from pocketport.compress.diagnosis.remedies import Remedy
from pocketport.compress.diagnosis.samples import Samples, least_db, output_noise
from pocketport.compress.executors.ort_executor import OrtExecutor
from pocketport.compress.executors.ort_executor import Samples as CalibrationSamples
from pocketport.compress.pivot.apply import apply_component
from pocketport.compress.pivot.weights import QuantizedTensor
from pocketport.compress.planning.legality import Legality
from pocketport.compress.planning.plan import Plan, make_plan
from pocketport.compress.recipe import Recipe, Rule, with_rules
from pocketport.errors import InputError, UsageError

LEAST_GAIN_DB = 0.1  # below that a remedy is not worth a line in a recipe
ALIKE = 0.8  # remedies that bring this share of the best one's gain help about alike


@dataclass(frozen=True)
class Measured:
    """One component under one recipe: SQNR of its worst output against float, and bytes of its constants."""

    db: float
    bytes: int


@dataclass(frozen=True)
class Trial:
    """One remedy for one tensor, on top of the remedies kept before it.

    Attributes:
        tensor: that it is for.
        remedy: what was tried.
        before: the component without it.
        after: with it; None where it can't be done.
        why: the reason then.
        kept: whether the recipe has it.
    """

    tensor: str
    remedy: Remedy
    before: Measured
    after: Measured | None
    why: str = ""
    kept: bool = False

    @property
    def gain_db(self) -> float:
        """What it brought."""
        return 0.0 if self.after is None else self.after.db - self.before.db


class Workbench:
    """Plans and makes one component under changed recipes.

    Args:
        bundle: the float bundle.
        recipe: the run's.
        target: ``vendor/soc``.
        legality: of the target.
        component: to work on.
        calibration: makes what was calibrated on anew, for recipes that round on it.
    """

    def __init__(
        self, bundle: ModelBundle, recipe: Recipe, target: str, legality: Legality, component: str,
        calibration: CalibrationSamples | None = None,
    ) -> None:  # fmt: skip
        self.bundle = bundle
        self.recipe = recipe
        self.target = target
        self.legality = legality
        self.component = component
        self._calibration = calibration
        self._known: dict[str, QuantizedTensor] = {}

    def plan(self, rules: Sequence[Rule]) -> Plan:
        """The whole model's plan with these rules behind the recipe's own; UsageError where they are not legal."""
        return make_plan(self.bundle, with_rules(self.recipe, self.target, rules), self.target, self.legality)

    def measure(self, rules: Sequence[Rule], statistics: Statistics, samples: Samples) -> Measured:
        """Make the component's pivot and run it.

        Raises:
            UsageError: the target does not take what a rule asks for.
            InputError: an algorithm needs what calibration did not keep.
        """
        plan = self.plan(rules)
        pivot = apply_component(self.bundle, plan, statistics, self.component, self._known, samples=self._calibration)
        executor = OrtExecutor(pivot)
        noise = output_noise(samples, [executor.run(feeds) for feeds in samples.feeds])
        return Measured(least_db(noise), plan[self.component].bytes_after)


def repair(
    bench: Workbench,
    candidates: Sequence[tuple[str, Sequence[Remedy]]],
    statistics: Statistics,
    samples: Samples,
    progress: Callable[[int], None] | None = None,
) -> list[Trial]:
    """Try all candidates tensor by tensor, and keep of each tensor the cheapest of those that help about as much as its best.

    Args:
        bench: of the component.
        candidates: tensor and its remedies, the worst tensor first.
        statistics: of a calibration that kept the Hessians of all candidates' plans.
        samples: held-out ones.
        progress: called with the number of remedies tried.
    """
    rules: list[Rule] = []
    current = bench.measure(rules, statistics, samples)
    found: list[Trial] = []
    for tensor, remedies in candidates:
        trials = []
        for remedy in remedies:
            trials.append(_try(bench, tensor, remedy, rules, current, statistics, samples))
            if progress:
                progress(len(found) + len(trials))
        best = _cheapest(trials)
        if best is not None and best.after is not None:
            rules += best.remedy.rules
            current = best.after
            trials = [Trial(t.tensor, t.remedy, t.before, t.after, t.why, kept=t is best) for t in trials]
        found += trials
    return found


def _try(
    bench: Workbench,
    tensor: str,
    remedy: Remedy,
    rules: Sequence[Rule],
    before: Measured,
    statistics: Statistics,
    samples: Samples,
) -> Trial:
    try:
        after = bench.measure([*rules, *remedy.rules], statistics, samples)
    except (UsageError, InputError) as error:
        return Trial(tensor, remedy, before, None, error.why)
    return Trial(tensor, remedy, before, after)


def _cheapest(trials: Sequence[Trial]) -> Trial | None:
    best = max((t.gain_db for t in trials), default=0.0)
    if best < LEAST_GAIN_DB:
        return None
    alike = [t for t in trials if t.gain_db >= ALIKE * best]
    return min(alike, key=lambda t: (t.remedy.cost, t.after.bytes if t.after else 0, -t.gain_db))
