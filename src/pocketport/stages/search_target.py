"""Mixed precision for a target: errors at each component's outputs, the best allocations, and what their pivots measure."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pocketport.compress.blockwise.activations import Activations
from pocketport.compress.cache.float_cache import with_float_ends
from pocketport.compress.executors.ort_executor import Arrays, OrtExecutor
from pocketport.compress.families.registry import family_named
from pocketport.compress.mixed_precision.outputs import output_gradient
from pocketport.compress.mixed_precision.sensitivity import Errors, Inputs, Rounder, Sensitivities
from pocketport.compress.mixed_precision.stream import GRADIENT, Stream
from pocketport.compress.mixed_precision.target import target_layers
from pocketport.compress.pivot.input_scaling import Numbers
from pocketport.compress.planning.plan import Plan, make_plan
from pocketport.compress.recipe import Recipe, Rule, load_recipe, with_rules
from pocketport.compress.structure import is_float
from pocketport.compress.torch_device import best_device
from pocketport.data import load_data
from pocketport.errors import UsageError
from pocketport.files import write_json
from pocketport.profiles.device import load_device
from pocketport.stages.calibrate import calibrate, check_memory, load_statistics
from pocketport.stages.condition import condition
from pocketport.stages.context import Context
from pocketport.stages.held_out import collect_held_out, load_held_out
from pocketport.stages.ingest import ingest, load_bundle
from pocketport.stages.quantize import load_pivot, quantize
from pocketport.stages.searched import Budget, Candidate, Searched, candidates, ranked
from pocketport.stages.weights import memory_limit
from pocketport.store import StageResult
from pocketport.targets.contract import Target
from pocketport.targets.registry import backend_for

SAMPLES = 16  # of each component that errors are taken from
ACTIVATION_SHARE = 0.5  # of the memory limit
NOISE = "noise over signal"


class TargetSearch:
    """A search over one model on one target.

    Args:
        context: its request names one target.
        schemes: to choose among, None for all that are legal.

    Raises:
        UsageError: an unknown target or recipe, a scheme that is not legal.
        InputError: the model is damaged, or has an op through which no gradients can be taken.
    """

    def __init__(self, context: Context, schemes: Sequence[str] | None) -> None:
        self.context = context
        self.target = context.request.targets[0]
        parsed = Target.parse(self.target)
        self._legality = backend_for(parsed).legality(parsed)
        self.base = load_recipe(context.request.recipe)
        self._bundled = condition(context, ingest(context))
        self.bundle = load_bundle(self._bundled)
        self.found = target_layers(self.bundle, self.base, self.target, self._legality, schemes)

    @cached_property
    def errors(self) -> dict[str, dict[str, Errors]]:
        """Of every weight in every scheme, or the store's."""
        data = load_data(self.bundle, self.context.request)
        schemes = {name: self.found.schemes(name) for name in self.found.components}
        key, total = "sensitivities", sum(map(len, schemes.values()))
        self.context.progress.start(key, "errors of every layer in every scheme", total)
        plans = {s: {k: asdict(t) for k, t in own.items()} for s, own in self.found.plans.items()}
        inputs = {"bundle": self._bundled.digest, "data": data.fingerprint, "schemes": schemes, "plans": plans}
        factors: dict[str, dict[str, Numbers]] = {}
        if self.found.scales_inputs:
            factors = self.found.factors(self.bundle, load_statistics(calibrate(self.context, self._bundled, {})))

        def produce(directory: Path) -> None:
            errors: dict[str, dict[str, Errors]] = {}
            for name in self.found.components:
                feeds = islice((f for component, f in data.calibration() if component == name), SAMPLES)
                advance = partial(self._advance, len(errors))
                rounder = partial(self._rounded, name, factors)
                errors |= self._errors_of(name, feeds, schemes[name], directory / ".activations", rounder, advance)
            write_json(directory / "errors.json", errors)

        result = self._stage(key, inputs, produce)
        errors: dict[str, dict[str, Errors]] = json.loads((result.path / "errors.json").read_text("utf-8"))
        return errors

    def _errors_of(
        self, name: str, feeds: Iterator[Arrays], schemes: Mapping[str, Sequence[str]], scratch: Path,
        rounder: Rounder, advance: Callable[[int], None],
    ) -> dict[str, dict[str, Errors]]:  # fmt: skip
        graph = self.bundle[name].graph
        outputs = [v.name or "" for v in graph.graph.outputs if is_float(v)]
        generator = torch.Generator().manual_seed(self.context.request.seed)
        fed: list[Arrays] = []
        budget = int(ACTIVATION_SHARE * memory_limit(self.context.request))
        with Activations(scratch, budget) as activations:
            stream = Stream(lambda _: graph, _kept(feeds, fed), outputs, activations, best_device())
            sensitivities = Sensitivities(schemes, rounder, stream.count, activations, advance)
            stream.forward()
            for sample in range(stream.count):
                values = {
                    n: activations.get(n, sample, stream.device) for n in outputs if n in activations.names(sample)
                }
                rows = self._rows(name, fed[sample], {n: v.cpu().numpy() for n, v in values.items()})
                for output, value in values.items():
                    gradient = output_gradient(value, generator)
                    if output in rows:
                        axis, first, last = rows[output]
                        used = torch.zeros_like(gradient)
                        used.narrow(axis, first, last - first).fill_(1)
                        gradient = gradient * used
                    activations.put(GRADIENT + output, sample, gradient)
            stream.backward(sensitivities.wants, sensitivities.visit, sensitivities.finish)
        return {f"{name}/{weight}": errors for weight, errors in sensitivities.errors.items()}

    def _rounded(
        self, component: str, factors: Mapping[str, Mapping[str, Numbers]], weight: str, schemes: Sequence[str],
        matrix: Tensor, inputs: Inputs,
    ) -> Iterator[Tensor]:  # fmt: skip
        return self.found.rounded(f"{component}/{weight}", schemes, matrix, inputs, factors)

    def _advance(self, before: int, done: int) -> None:
        self.context.progress.advance("sensitivities", before + done)

    def _rows(self, component: str, feeds: Arrays, results: Arrays) -> Mapping[str, tuple[int, int, int]]:
        """What of each output is used, as `HeldOut` has it."""
        family = family_named(self.bundle.family)
        return {} if family is None else family.meaningful_rows(component, feeds, results)

    def search(self, budget: Budget, *, confirm: bool = True) -> Searched:
        """The best allocation within a budget by each error model; the best measured one comes first.

        Raises:
            UsageError: the budget is too small, or in milliseconds for a device of unknown bandwidth.
        """
        if budget.ms is None:
            total = budget.of_layers(self.found.elements, self.found.fixed_bytes)
            found = candidates(self.found.layers, self.errors, total)
        else:
            found = candidates(self.found.timed(self._bandwidth()), self.errors, budget.ms)
        if confirm:
            found = self._measured(found)
        return Searched(self.found.layers, self.errors, tuple(found), self.found.fixed_bytes, self.recipe)

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

    def _measured(self, found: Sequence[Candidate]) -> list[Candidate]:
        plans = [make_plan(self.bundle, self.recipe(c.rules), self.target, self._legality) for c in found]
        return ranked(c.measured(f) for c, f in zip(found, self.noise(plans), strict=True))

    def noise(self, plans: Sequence[Plan]) -> list[dict[str, float]]:
        """What the pivots of plans measure on held-out samples: noise over signal, the mean of all outputs."""
        named = {str(i): plan for i, plan in enumerate(plans)}
        check_memory(named)
        calibrated = calibrate(self.context, self._bundled, named)
        held_out = collect_held_out(self.context, self._bundled)
        return [
            {
                NOISE: self._noise(
                    quantize(self.context, self._bundled, calibrated, held_out, self.target, plan), held_out
                )
            }
            for plan in plans
        ]

    def _noise(self, quantized: StageResult, held_out: StageResult) -> float:
        pivot, ratios = load_pivot(quantized), list[float]()
        for component in pivot:
            if component.name not in self.found.components:
                continue
            known = load_held_out(held_out, component.name)
            executor = OrtExecutor(with_float_ends(component.graph))
            results = [executor.run(feeds) for feeds in known.feeds]
            for name in known.outputs[0]:
                expected = known.used(known.outputs, name)
                signal = float(np.square(expected).sum())
                if signal:
                    ratios.append(float(np.square(expected - known.used(results, name)).sum()) / signal)
        return float(np.mean(ratios))

    def _stage(self, key: str, inputs: Mapping[str, Any], produce: Callable[[Path], None]) -> StageResult:
        code, packages = ("compress", "calibration"), ("torch", "numpy")
        return self.context.record(key, self.context.store.run(key, inputs, produce, code=code, packages=packages))


def _kept(feeds: Iterator[Arrays], fed: list[Arrays]) -> Iterator[Arrays]:
    """The same feeds, each remembered."""
    for arrays in feeds:
        fed.append(arrays)
        yield arrays
