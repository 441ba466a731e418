"""Mixed precision for a target: the best allocations by the errors of an objective, and what their pivots measure."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from pocketport.compress.mixed_precision.next_token import Quality
from pocketport.compress.mixed_precision.pairs import Effects
from pocketport.compress.mixed_precision.sensitivity import Errors, Inputs, Rounder
from pocketport.compress.mixed_precision.summed_inputs import Sum
from pocketport.compress.mixed_precision.target import target_layers
from pocketport.compress.pivot.input_scaling import Numbers
from pocketport.compress.planning.plan import Plan, make_plan
from pocketport.compress.recipe import Recipe, Rule, load_recipe, with_rules
from pocketport.errors import UsageError
from pocketport.profiles.device import load_device
from pocketport.stages.calibrate import calibrate, check_memory, load_statistics
from pocketport.stages.condition import condition
from pocketport.stages.context import Context
from pocketport.stages.held_out import collect_held_out
from pocketport.stages.image_sequences import Answers
from pocketport.stages.ingest import ingest, load_bundle
from pocketport.stages.quantize import quantize
from pocketport.stages.searched import Budget, Losses, Searched, candidates, load_losses, ranked, save_losses
from pocketport.stages.target_answers import AnswerDivergence, answers_about_images
from pocketport.stages.target_noise import OutputNoise
from pocketport.store import StageResult
from pocketport.targets.contract import Target
from pocketport.targets.registry import backend_for

OBJECTIVES = ("answers", "outputs")


class Objective(Protocol):
    """What is lost, as errors of weights say and as pivots measure.

    Attributes:
        fingerprint: of the data that errors are taken from.
    """

    fingerprint: str

    def losses(
        self, schemes: Mapping[str, Mapping[str, Sequence[str]]], rounder: Callable[[str], Rounder], scratch: Path,
        advance: Callable[[int], None], sums: Mapping[str, Sequence[Sum]],
    ) -> Losses:  # fmt: skip
        """Errors and effects by ``component/weight``.

        Args:
            schemes: component → weight → schemes.
            rounder: of a component.
            scratch: a file for what memory is short for; others beside it begin with its name.
            advance: called with the number of weights done.
            sums: of each component those layers that are rounded one after the other.
        """
        ...

    def figures(self, pivot: StageResult) -> dict[str, float]:
        """What a pivot measures; the first figure decides, less is better."""
        ...


class TargetSearch:
    """A search over one model on one target.

    Args:
        context: its request names one target.
        schemes: to choose among, None for all that are legal.
        objective: one of `OBJECTIVES`: the divergence of answers about images through all components, or noise over signal
            at each component's outputs; None: answers where the model gives any.
        samples: images that errors are taken from, see `AnswerDivergence`.
        measured: images that pivots are measured on.

    Raises:
        UsageError: an unknown target or recipe, a scheme that is not legal, no answers to measure.
        InputError: the model is damaged, or has an op through which no gradients can be taken.
    """

    def __init__(
        self, context: Context, schemes: Sequence[str] | None, *, objective: str | None = None, samples: int | None = None,
        measured: int | None = None,
    ) -> None:  # fmt: skip
        self.context = context
        self.target = context.request.targets[0]
        parsed = Target.parse(self.target)
        self._legality = backend_for(parsed).legality(parsed)
        self.base = load_recipe(context.request.recipe)
        self._bundled = condition(context, ingest(context))
        self.bundle = load_bundle(self._bundled)
        self.found = target_layers(self.bundle, self.base, self.target, self._legality, schemes)
        self.objective = self._objective(objective, samples, measured)

    def _objective(
        self, wanted: str | None, samples: int | None, measured: int | None
    ) -> AnswerDivergence | OutputNoise:
        answers = answers_about_images(self.bundle)
        if wanted == "answers" and not answers:
            raise UsageError(
                "it does not answer about images", where="--objective answers", fix="search with --objective outputs"
            )
        if answers and wanted != "outputs":
            return AnswerDivergence(self.context, self._bundled, samples, measured)
        if samples is not None or measured is not None:
            raise UsageError(
                "noise at outputs is taken from the calibration samples", where="--error-samples, --measured-samples",
                fix="give --calibration-samples",
            )  # fmt: skip
        return OutputNoise(self.context, self._bundled, self.found.components)

    @property
    def errors(self) -> dict[str, dict[str, Errors]]:
        """Of every weight in every scheme."""
        return self._losses[0]

    @property
    def effects(self) -> Effects | None:
        """Of the same, sample by sample, where the objective knows them."""
        return self._losses[1]

    @cached_property
    def _losses(self) -> tuple[dict[str, dict[str, Errors]], Effects | None]:
        """One pass over the data, or the store's."""
        schemes = {name: self.found.schemes(name) for name in self.found.components}
        key, total = "sensitivities", sum(map(len, schemes.values()))
        self.context.progress.start(key, "errors of every layer in every scheme", total)
        plans = {s: {k: asdict(t) for k, t in own.items()} for s, own in self.found.plans.items()}
        inputs: dict[str, Any] = {
            "bundle": self._bundled.digest, "objective": type(self.objective).__name__, "data": self.objective.fingerprint,
            "schemes": schemes, "plans": plans,
        }  # fmt: skip
        factors: dict[str, dict[str, Numbers]] = {}
        sums: dict[str, list[Sum]] = {}
        if self.found.scales_inputs or self.found.summed:
            calibrated = calibrate(self.context, self._bundled, dict(self.found.whole))
            inputs["statistics"], statistics = calibrated.digest, load_statistics(calibrated)
            factors = self.found.factors(self.bundle, statistics)
            sums = {name: self.found.sums(name, statistics) for name in self.found.components}

        def produce(directory: Path) -> None:
            advance = partial(self.context.progress.advance, key)

            def rounder(component: str) -> Rounder:
                return partial(self._rounded, factors, component)

            save_losses(self.objective.losses(schemes, rounder, directory / ".activations", advance, sums), directory)

        by_key = {f"{name}/{weight}": own for name, weights in schemes.items() for weight, own in weights.items()}
        errors, effects = load_losses(self._stage(key, inputs, produce).path, by_key)
        return errors, effects or None

    def _rounded(
        self, factors: Mapping[str, Mapping[str, Numbers]], component: str, weight: str, schemes: Sequence[str],
        matrix: Tensor, inputs: Inputs,
    ) -> Iterator[Tensor]:  # fmt: skip
        return self.found.rounded(f"{component}/{weight}", schemes, matrix, inputs, factors)

    def search(self, budget: Budget, *, confirm: bool = True) -> Searched:
        """The best allocation within a budget by each error model; the best measured one comes first.

        Raises:
            UsageError: the budget is too small, or in milliseconds for a device of unknown bandwidth.
        """
        if budget.ms is None:
            total = budget.of_layers(self.found.elements, self.found.fixed_bytes)
            found = candidates(self.found.layers, self.errors, total, self.effects)
        else:
            found = candidates(self.found.timed(self._bandwidth()), self.errors, budget.ms, self.effects)
        if confirm:
            pivots = self.pivots([c.rules for c in found])
            found = ranked(c.measured(self.objective.figures(p)) for c, p in zip(found, pivots, strict=True))
        return Searched(self.found.layers, self.errors, tuple(found), self.found.fixed_bytes, self.recipe)

    @property
    def answers(self) -> AnswerDivergence:
        """The objective, where it is that of answers.

        Raises:
            UsageError: it is another.
        """
        if not isinstance(self.objective, AnswerDivergence):
            raise UsageError("no answers are measured", where=self.target, fix="search with --objective answers")
        return self.objective

    def quality(self, rules: Sequence[Rule], samples: Answers) -> Quality:
        """What the pivot by the base recipe and these rules answers about images."""
        return self.answers.quality(next(self.pivots([rules])), samples)

    def recipe(self, rules: Sequence[Rule]) -> Recipe:
        """The base recipe with further rules for the target."""
        return with_rules(self.base, self.target, rules)

    def _bandwidth(self) -> float:
        device = load_device(self.target)
        if device is None or device.dram_gbps is None:
            raise UsageError(
                "nothing is known of its memory's bandwidth", where=f"--budget-ms, {self.target}",
                fix="give --budget-bytes or --budget-bits",
            )  # fmt: skip
        return device.dram_gbps.value

    def pivots(self, rules: Sequence[Sequence[Rule]]) -> Iterator[StageResult]:
        """The pivot by the base recipe and further rules, for each set of them."""
        plans = [make_plan(self.bundle, self.recipe(own), self.target, self._legality) for own in rules]
        named: dict[str, Plan] = {str(i): plan for i, plan in enumerate(plans)}
        check_memory(named)
        calibrated = calibrate(self.context, self._bundled, named)
        held_out = collect_held_out(self.context, self._bundled)
        for plan in plans:
            yield quantize(self.context, self._bundled, calibrated, held_out, self.target, plan)

    def _stage(self, key: str, inputs: Mapping[str, Any], produce: Callable[[Path], None]) -> StageResult:
        code, packages = ("compress", "calibration"), ("torch", "numpy")
        return self.context.record(key, self.context.store.run(key, inputs, produce, code=code, packages=packages))
