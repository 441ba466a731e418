"""Mixed precision for checkpoint formats: sensitivities, the best allocation by each error model, and what they measure."""

import hashlib
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from pocketport.compress.blockwise.activations import Activations
from pocketport.compress.bundle import ModelBundle
from pocketport.compress.families.registry import Lengths, family_of, host_of
from pocketport.compress.ingest import path_of
from pocketport.compress.mixed_precision.allocation import Allocation, Layer, allocate
from pocketport.compress.mixed_precision.checkpoint import CheckpointLayers, Dequantized, checkpoint_layers
from pocketport.compress.mixed_precision.next_token import Head, Quality, quality
from pocketport.compress.mixed_precision.sensitivity import MODELS, Errors, Sensitivities
from pocketport.compress.mixed_precision.stream import GRADIENT, Stream
from pocketport.compress.quantized_weights import QuantizedWeights
from pocketport.compress.recipe import Recipe, Rule, load_recipe
from pocketport.compress.sources.open import open_source
from pocketport.compress.sources.source import Source
from pocketport.compress.torch_device import best_device
from pocketport.compress.weight_planning import CALIBRATED_COMPONENT
from pocketport.errors import UsageError
from pocketport.files import atomic_file, write_json
from pocketport.formats import format_named
from pocketport.request import Request
from pocketport.stages.context import Context
from pocketport.stages.sequences import Sequences, sequences_for
from pocketport.stages.weights import memory_limit, plan_formats, quantize_format, sequence_length
from pocketport.store import StageResult

CODE = ("compress", "calibration")
PACKAGES = ("torch", "numpy")
MEASURED_SEQUENCES = 8
ACTIVATION_SHARE = 0.5  # of the memory limit


@dataclass(frozen=True)
class Budget:
    """What the weights may take: all bytes of the model, or the mean bits of a weight that is searched."""

    bytes: float | None = None
    bits: float | None = None

    def of_layers(self, found: CheckpointLayers) -> float:
        """Bytes for the layers that are searched.

        Raises:
            UsageError: what is not searched takes more already.
        """
        if self.bits is not None:
            return self.bits * found.elements / 8
        left = (self.bytes or 0.0) - found.fixed_bytes
        if left <= 0:
            raise UsageError(
                f"tensors that are not searched take {found.fixed_bytes:,} bytes already",
                where=f"--budget-bytes {self.bytes:,.0f}",
                fix="give a larger budget, or --budget-bits",
            )
        return left


@dataclass(frozen=True)
class Candidate:
    """One allocation, and what it measures where it was tried."""

    allocation: Allocation
    rules: tuple[Rule, ...]
    quality: Quality | None = None


@dataclass(frozen=True)
class Searched:
    """What a search found.

    Attributes:
        layers: that were chosen for.
        errors: weight → scheme → error model → error.
        candidates: the best first.
        fixed: cost of what was not searched.
        base: the recipe that the rules come behind.
    """

    layers: tuple[Layer, ...]
    errors: Mapping[str, Mapping[str, Errors]]
    candidates: tuple[Candidate, ...]
    fixed: float
    base: Recipe

    @property
    def best(self) -> Candidate:
        """The best measured one."""
        return self.candidates[0]

    def recipe(self, name: str, candidate: Candidate) -> dict[str, Any]:
        """The recipe as a document."""
        own = self.base.model_dump(exclude_defaults=True, exclude={"name", "description", "rules"})
        rules = [r.model_dump(exclude_defaults=True) for r in (*self.base.rules, *candidate.rules)]
        description = f"A scheme for each layer, chosen by `pocketport search` ({candidate.allocation.model})."
        return {"version": 1, "name": name, "description": description, **own, "rules": rules}


class FormatSearch:
    """A search over one checkpoint in one format.

    Args:
        context: its request names one format.
        schemes: to choose among, None for all that are known.

    Raises:
        UsageError: an unknown format or recipe, a scheme that the format does not take, no text to calibrate on.
        InputError: the model is damaged, or no language model.
    """

    def __init__(self, context: Context, schemes: Sequence[str] | None) -> None:
        self.context = context
        request = context.request
        self.source: Source = open_source(path_of(request.source))
        self.length = sequence_length(self.source, request)
        name = request.source if request.source == "reference" else self.source.path.resolve().name
        self.bundle: ModelBundle = family_of(self.source).load(self.source, name, Lengths(prompt=self.length))
        self.base = load_recipe(request.recipe)
        form, variant = format_named(request.formats[0])
        form.check(self.source, self.bundle, variant)
        self.found = checkpoint_layers(self.source, self.bundle, self.base, form, variant, schemes)
        self.head = Head(self.bundle[CALIBRATED_COMPONENT].graph, best_device())
        self.text = self._sequences(request.calibration_samples, request.seed)
        self.measured = self._sequences(MEASURED_SEQUENCES, request.seed + 1)

    def _sequences(self, count: int, seed: int) -> Sequences:
        return sequences_for(self.bundle, self.context.request.data, count, self.length, seed)

    @cached_property
    def errors(self) -> dict[str, dict[str, Errors]]:
        """Of every weight in every scheme: one pass over the data, or the store's."""
        key = "sensitivities"
        self.context.progress.start(key, "errors of every layer in every scheme", len(self.found.schemes))
        inputs = {"source": self.source.sha256(), "schemes": self.found.schemes, "tokens": _sha(self.text)}

        def produce(directory: Path) -> None:
            write_json(directory / "errors.json", self._measure_errors(directory / ".activations"))

        result = self._stage(key, inputs, produce)
        errors: dict[str, dict[str, Errors]] = json.loads((result.path / "errors.json").read_text("utf-8"))
        return errors

    def _measure_errors(self, scratch: Path) -> dict[str, dict[str, Errors]]:
        generator = torch.Generator().manual_seed(self.context.request.seed)
        advance = lambda done: self.context.progress.advance("sensitivities", done)  # noqa: E731
        sensitivities = Sensitivities(self.found.schemes, self.found.rounded, advance)
        with self._activations(scratch) as activations:
            stream = self._stream(self.text, activations)
            stream.forward()
            for sample in range(stream.count):
                hidden = activations.get(self.head.hidden, sample, stream.device)
                activations.put(GRADIENT + self.head.hidden, sample, self.head.gradient(hidden, generator))
            stream.backward(sensitivities.wants, sensitivities.visit, sensitivities.finish)
        return sensitivities.errors

    def _activations(self, path: Path) -> Activations:
        return Activations(path, int(ACTIVATION_SHARE * memory_limit(self.context.request)))

    def _stream(self, text: Sequences, activations: Activations) -> Stream:
        graph = self.bundle[CALIBRATED_COMPONENT].graph
        feeds = text.feeds(self.bundle, host_of(self.bundle))
        return Stream(graph, feeds, [self.head.hidden], activations, best_device())

    def search(self, budget: Budget, *, confirm: bool = True) -> Searched:
        """The best allocation within a budget by each error model; the best measured one comes first.

        Raises:
            UsageError: the budget is too small.
        """
        layers, total = self.found.layers, budget.of_layers(self.found)
        candidates: dict[tuple[tuple[str, str], ...], Candidate] = {}
        for model in MODELS:
            allocation = allocate(layers, self.errors, total, model)
            own = Candidate(allocation, tuple(allocation.rules(layers)))
            candidates.setdefault(tuple(sorted(allocation.schemes.items())), own)
        found = list(candidates.values())
        if confirm:
            found = [Candidate(c.allocation, c.rules, self.quality(c.rules)) for c in found]
            found.sort(key=lambda c: c.quality.divergence if c.quality else 0.0)
        return Searched(layers, self.errors, tuple(found), self.found.fixed_bytes, self.base)

    def quality(self, rules: Sequence[Rule]) -> Quality:
        """What the model measures when it is quantized by the base recipe and these rules."""
        recipe = self.base.model_copy(update={"rules": [*self.base.rules, *rules]})
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "recipe.yaml"
            path.write_text(yaml.safe_dump(recipe.model_dump(exclude_defaults=True)), "utf-8")
            (job,) = plan_formats(self.context.request.model_copy(update={"recipe": str(path)}))
        weights = quantize_format(self.context, job)
        key = f"measure {weights.key[:8]}"
        self.context.progress.start(key, "measure the quantized model", None)

        def produce(directory: Path) -> None:
            quantized = Dequantized(QuantizedWeights(weights.path))
            found = quality(self.head, self._float_hidden, self._hidden(quantized), self.measured.tokens)
            write_json(directory / "quality.json", vars(found))

        result = self._stage(key, {"weights": weights.digest, "tokens": _sha(self.measured)}, produce)
        return Quality(**json.loads((result.path / "quality.json").read_text("utf-8")))

    @cached_property
    def _float_hidden(self) -> list[Tensor]:
        return self._hidden({})

    def _hidden(self, replaced: Mapping[str, Tensor]) -> list[Tensor]:
        """The hidden states of the measured text [S, H], with other weights in the place of some."""
        with tempfile.TemporaryDirectory() as folder, self._activations(Path(folder) / "activations") as activations:
            stream = self._stream(self.measured, activations)
            stream.forward(replaced)
            return [activations.get(self.head.hidden, s, torch.device("cpu")) for s in range(stream.count)]

    def _stage(self, key: str, inputs: Mapping[str, Any], produce: Any) -> StageResult:
        name = key.partition(" ")[0]
        return self.context.record(key, self.context.store.run(name, inputs, produce, code=CODE, packages=PACKAGES))


def _sha(text: Sequences) -> str:
    return hashlib.sha256(text.tokens.tobytes()).hexdigest()


def write_recipe(path: Path, searched: Searched, candidate: Candidate, request: Request) -> None:
    """The recipe of a candidate, with what it measures in a comment."""
    lines = [
        f"# {request.source}, {', '.join((*request.formats, *request.targets))}: {candidate.allocation.cost:,.0f} bytes"
    ]
    if candidate.quality is not None:
        measured = candidate.quality
        lines.append(f"# measured: perplexity {measured.perplexity:.3f}, divergence {measured.divergence:.5f} nats")
    text = yaml.safe_dump(searched.recipe(path.stem, candidate), sort_keys=False, width=120)
    with atomic_file(path) as temporary:
        temporary.write_text("\n".join((*lines, text)), "utf-8")
