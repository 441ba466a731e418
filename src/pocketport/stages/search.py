"""Mixed precision for checkpoint formats: sensitivities, the best allocation by each error model, and what they measure."""

import hashlib
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from torch import Tensor

from pocketport.compress.bundle import ModelBundle
from pocketport.compress.families.registry import Lengths, family_of
from pocketport.compress.ingest import path_of
from pocketport.compress.mixed_precision.allocation import Allocation, Layer, groupings_of
from pocketport.compress.mixed_precision.checkpoint import FLOAT, Composed, Dequantized, checkpoint_layers
from pocketport.compress.mixed_precision.exchange import exchange
from pocketport.compress.mixed_precision.knapsack import Options, undominated
from pocketport.compress.mixed_precision.next_token import Quality
from pocketport.compress.mixed_precision.pairs import Effects
from pocketport.compress.mixed_precision.raking import raked
from pocketport.compress.mixed_precision.sensitivity import LOSS, Errors, Sensitivities
from pocketport.compress.planning.weights import CALIBRATED_COMPONENT
from pocketport.compress.quantized_weights import QuantizedWeights
from pocketport.compress.recipe import Recipe, Rule, load_recipe
from pocketport.compress.sources.open import open_source
from pocketport.compress.sources.source import Source
from pocketport.errors import UsageError
from pocketport.files import write_json
from pocketport.formats import format_named
from pocketport.request import Request
from pocketport.stages.answer_gradients import put_gradients
from pocketport.stages.context import Context
from pocketport.stages.image_sequences import MEASURED_IMAGES, ROW_STEP, Answers, images_of
from pocketport.stages.predictions import Predictions
from pocketport.stages.searched import Budget, Candidate, Searched, candidates, load_losses, ranked, save_losses
from pocketport.stages.sequences import Sequences, sequences_for
from pocketport.stages.weights import plan_formats, quantize_format, sequence_length
from pocketport.store import StageResult

CODE = ("compress", "calibration")
PACKAGES = ("torch", "numpy")
MEASURED = 8  # sequences of text, beside those of calibration


class FormatSearch:
    """A search over one checkpoint in one format.

    Args:
        context: its request names one format.
        schemes: to choose among, None for all that are known.
        joined: whether layers that share an input get one scheme, None for what suits the format's engines.
        samples: that errors are taken from, None for as many as weights are calibrated on.
        measured: samples that allocations are measured on, None for `MEASURED_IMAGES` or `MEASURED`.

    Raises:
        UsageError: an unknown format or recipe, a scheme that the format does not take, no text to calibrate on.
        InputError: the model is damaged, or no language model.
    """

    def __init__(
        self, context: Context, schemes: Sequence[str] | None, *, joined: bool | None = None,
        samples: int | None = None, measured: int | None = None,
    ) -> None:  # fmt: skip
        self.context = context
        request = context.request
        self.source: Source = open_source(path_of(request.source))
        self.length = sequence_length(self.source, request)
        name = request.source if request.source == "reference" else self.source.path.resolve().name
        self._load = partial(family_of(self.source).load, self.source, name)
        self.bundle: ModelBundle = self._load(Lengths(prompt=self.length))
        self.base = load_recipe(request.recipe)
        form, variant = format_named(request.formats[0])
        form.check(self.source, self.bundle, variant)
        self.found = checkpoint_layers(self.source, self.bundle, self.base, form, variant, schemes, joined=joined)
        self.predictions = Predictions(context, self.bundle, self._load)
        self.samples, self.measured = self.data(request, samples or request.calibration_samples, measured)
        self._whole: dict[str, StageResult] = {}

    def data(
        self, request: Request, count: int, measured: int | None = None
    ) -> tuple[Sequences | Answers, Sequences | Answers]:
        """So many samples that errors are taken from, and what candidates are measured on."""
        start = max(count, request.calibration_samples)  # those behind calibration's are measured
        more = request.model_copy(update={"calibration_samples": start + (measured or MEASURED_IMAGES)})
        answers = images_of(self.bundle, more)
        if answers is None:
            text = sequences_for(self.bundle, request.data, count + (measured or MEASURED), self.length, request.seed)
            return text.part(0, count), text.part(count, text.count)
        last = answers.count - 1  # few images: one at least to measure on
        if last < 1:
            raise UsageError(
                "one image can't both calibrate and measure", where=answers.images.origin, fix="give more images"
            )
        if self._takes_fewer_rows:
            answers = Answers(replace(answers.images, padded=False))
        return answers.part(0, min(count, last)), answers.part(min(start, last), answers.count)

    @property
    def errors(self) -> dict[str, dict[str, Errors]]:
        """Of every weight in every scheme."""
        return self._sensitivities[0]

    @property
    def effects(self) -> Effects:
        """Of the same, sample by sample."""
        return self._sensitivities[1]

    @cached_property
    def _sensitivities(self) -> tuple[dict[str, dict[str, Errors]], Effects]:
        """One pass over the data, or the store's."""
        key = "sensitivities"
        self.context.progress.start(key, "errors of every layer in every scheme", len(self.found.schemes))
        plans = {scheme: [asdict(p) for p in own.values()] for scheme, own in self.found.plans.items()}
        inputs = {
            "source": self.source.sha256(), "schemes": self.found.schemes, "plans": plans, "data": self.samples.fingerprint,
        }  # fmt: skip

        def produce(directory: Path) -> None:
            found = self._measure_errors(directory / ".activations")
            save_losses((found.errors, found.effects), directory)

        return load_losses(self._stage(key, inputs, produce).path, self.found.schemes)

    def _measure_errors(self, scratch: Path) -> Sensitivities:
        advance = partial(self.context.progress.advance, "sensitivities")
        predictions = self.predictions
        with predictions.activations(scratch) as activations:
            stream, head = predictions.stream(self.samples, activations), predictions.head
            sensitivities = Sensitivities(self.found.schemes, self.found.rounded, stream.count, activations, advance)
            stream.forward()
            put_gradients(stream, head, self.context.request.seed)
            stream.backward(sensitivities.wants, sensitivities.visit, sensitivities.finish)
        return sensitivities

    @cached_property
    def _takes_fewer_rows(self) -> bool:
        """Whether short prompts go without padding; a family that cuts images to fit a prompt may refuse such graphs."""
        try:
            self._load(Lengths(prompt=ROW_STEP))
        except UsageError:
            return False
        return True

    def search(self, budget: Budget, *, confirm: bool = True, exchanges: int = 0) -> Searched:
        """The best allocation within a budget by each error model; the best measured one comes first.

        Args:
            budget: of the layers that are searched.
            confirm: whether they are measured.
            exchanges: rounds of `exchange` that the best measured one goes through.

        Raises:
            UsageError: the budget is too small, or exchanges are to be chosen by one sample.
        """
        if exchanges and self.measured.count < 2:
            raise UsageError(
                "one sample does not say what an exchange measures by chance", where="--exchanges",
                fix="measure on more samples",
            )  # fmt: skip
        layers = self.found.layers
        total = budget.of_layers(self.found.elements, self.found.fixed_bytes)
        errors = self._put_right(total) if confirm else self.errors
        found = candidates(layers, errors, total, self.effects, self.errors)
        if confirm:
            found = ranked(c.measured(self.quality(c.rules).figures) for c in found)
            if exchanges:
                found = self._exchanged(found, total, exchanges)
        return Searched(layers, errors, tuple(found), self.found.fixed_bytes, self.recipe)

    def _exchanged(self, found: list[Candidate], budget: float, rounds: int) -> list[Candidate]:
        """With the best one's bits exchanged, where that measures better once it is quantized."""
        layers, start = self.found.layers, found[0].allocation
        best = exchange(layers, self.errors, self.effects, start, budget, lambda a: self._composed(a).sums, rounds)
        if best is start:
            return found
        rules = tuple(best.rules(layers))
        return ranked([*found, Candidate(best, rules).measured(self.quality(rules).figures)])

    def _composed(self, allocation: Allocation) -> Quality:
        """What an allocation measures whose weights are each taken from the model that has their scheme throughout.

        Nothing is rounded again. Where weights are rounded each for itself that is what it measures; by `gptq` nearly.
        """
        schemes = {w: allocation.schemes[layer.name] for layer in self.found.layers for w in layer.weights}
        made = {s: self._throughout(s) for s in sorted(set(schemes.values()))}
        sets = {scheme: QuantizedWeights(result.path) for scheme, result in made.items()}
        weights = Dequantized(Composed({weight: sets[scheme] for weight, scheme in schemes.items()}))
        inputs = {"schemes": schemes, "weights": {scheme: result.digest for scheme, result in made.items()}}
        return self._measured(weights, inputs, self.measured)

    def _throughout(self, scheme: str) -> StageResult:
        """The model quantized in one scheme; layers that don't take it stay float."""
        if scheme not in self._whole:
            rule = Rule(component=CALIBRATED_COMPONENT, scheme=scheme, fallback=[FLOAT])
            self._whole[scheme] = self._quantized([rule])
        return self._whole[scheme]

    def _put_right(self, budget: float) -> Mapping[str, Mapping[str, Errors]]:
        """Errors whose losses sum up to what each kind of layer, and each stretch of the depth, measures alone.

        That is measured in the one scheme for all whose bytes are nearest to the budget, but for those that a smaller one is as
        good as: what loses most in them an allocation does not do.
        """
        layers = self.found.layers
        common = [s for s in self.found.plans if all(s in layer.costs for layer in layers)]
        if not common:
            return self.errors
        costs = np.array([sum(layer.costs[s] for layer in layers) for s in common])
        losses = np.array([sum(layer.error(self.errors, s, LOSS) for layer in layers) for s in common])
        scheme = common[min(undominated(Options(costs, losses)), key=lambda place: abs(costs[place] - budget))]
        groupings = groupings_of(layers)
        measured = [
            {group: self._alone(scheme, layers, grouping, group) for group in dict.fromkeys(grouping)}
            for grouping in groupings
        ]
        factors = raked(np.array([layer.error(self.errors, scheme, LOSS) for layer in layers]), groupings, measured)
        found = {weight: dict(own) for weight, own in self.errors.items()}
        for layer, factor in zip(layers, factors, strict=True):
            for weight in layer.weights:
                found[weight] = {s: {**e, LOSS: e[LOSS] * float(factor)} for s, e in found[weight].items()}
        return found

    def _alone(self, scheme: str, layers: Sequence[Layer], grouping: Sequence[str], group: str) -> float:
        """The divergence where the layers of one group alone have the scheme, and all others are float."""
        weights = [w for layer, own in zip(layers, grouping, strict=True) if own == group for w in layer.weights]
        return self.quality([Rule(component=CALIBRATED_COMPONENT, scheme=scheme)], only=weights).divergence

    def recipe(self, rules: Sequence[Rule]) -> Recipe:
        """The base recipe with further rules."""
        return self.base.model_copy(update={"rules": [*self.base.rules, *rules]})

    def quality(
        self, rules: Sequence[Rule], samples: Sequences | Answers | None = None, only: Sequence[str] | None = None
    ) -> Quality:
        """What the model measures when it is quantized by the base recipe and these rules.

        Args:
            rules: see above.
            samples: to be measured on, rather than what candidates are measured on.
            only: the weights that take their quantized values, None for all.
        """
        weights = self._quantized(rules)
        inputs = {"weights": weights.digest, "only": only}
        return self._measured(Dequantized(QuantizedWeights(weights.path), only), inputs, samples or self.measured)

    def _quantized(self, rules: Sequence[Rule]) -> StageResult:
        """The weights by the base recipe and these rules."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "recipe.yaml"
            path.write_text(yaml.safe_dump(self.recipe(rules).model_dump(exclude_defaults=True)), "utf-8")
            (job,) = plan_formats(self.context.request.model_copy(update={"recipe": str(path)}))
        return quantize_format(self.context, job)

    def _measured(
        self, weights: Mapping[str, Tensor], inputs: Mapping[str, Any], samples: Sequences | Answers
    ) -> Quality:
        """`quality_of`, or the store's where it has that for these inputs."""
        key = f"measure {hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:8]}"
        self.context.progress.start(key, "measure the quantized model", None)

        def produce(directory: Path) -> None:
            write_json(directory / "quality.json", vars(self.quality_of(weights, samples)))

        result = self._stage(key, {**inputs, "data": samples.fingerprint}, produce)
        return Quality(**json.loads((result.path / "quality.json").read_text("utf-8")))

    def quality_of(self, weights: Mapping[str, Tensor], samples: Sequences | Answers) -> Quality:
        """What the model measures on samples with other weights in the place of some."""
        return self.predictions.quality(weights, samples)

    def _stage(self, key: str, inputs: Mapping[str, Any], produce: Any) -> StageResult:
        name = key.partition(" ")[0]
        return self.context.record(key, self.context.store.run(name, inputs, produce, code=CODE, packages=PACKAGES))
