"""What a target's pivot loses as noise over signal at each component's outputs, whatever is behind them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from pocketport.compress.blockwise.activations import Activations
from pocketport.compress.bundle import ModelBundle
from pocketport.compress.cache.float_cache import with_float_ends
from pocketport.compress.executors.ort_executor import Arrays, OrtExecutor
from pocketport.compress.families.registry import family_named
from pocketport.compress.mixed_precision.outputs import output_gradient
from pocketport.compress.mixed_precision.sensitivity import Errors, Rounder, Sensitivities
from pocketport.compress.mixed_precision.stream import GRADIENT, Stream
from pocketport.compress.mixed_precision.summed_inputs import Sum
from pocketport.compress.structure import is_float
from pocketport.compress.torch_device import best_device
from pocketport.data import load_data
from pocketport.stages.context import Context
from pocketport.stages.held_out import collect_held_out, load_held_out
from pocketport.stages.ingest import load_bundle
from pocketport.stages.quantize import load_pivot
from pocketport.stages.searched import Losses
from pocketport.stages.weights import memory_limit
from pocketport.store import StageResult

SAMPLES = 16  # of each component that errors are taken from
ACTIVATION_SHARE = 0.5  # of the memory limit
NOISE = "noise over signal"


class OutputNoise:
    """An `Objective` (`search_target`).

    Args:
        context: whose request has the data.
        bundled: the float graphs.
        components: that are searched.
    """

    def __init__(self, context: Context, bundled: StageResult, components: Sequence[str]) -> None:
        self._context, self._bundled, self._components = context, bundled, components
        self._bundle = load_bundle(bundled)
        self._data = load_data(self._bundle, context.request)
        self.fingerprint = self._data.fingerprint

    def losses(
        self, schemes: Mapping[str, Mapping[str, Sequence[str]]], rounder: Callable[[str], Rounder], scratch: Path,
        advance: Callable[[int], None], sums: Mapping[str, Sequence[Sum]],
    ) -> Losses:  # fmt: skip
        """See `Objective`; samples' effects are not known, for each component has samples of its own."""
        errors: dict[str, dict[str, Errors]] = {}
        for name in self._components:
            feeds = islice((f for component, f in self._data.calibration() if component == name), SAMPLES)
            own = partial(_advance, advance, len(errors))
            found = self._of_component(name, feeds, schemes[name], rounder(name), scratch, own, sums.get(name, ()))
            errors |= {f"{name}/{weight}": one for weight, one in found.errors.items()}
        return errors, {}

    def figures(self, pivot: StageResult) -> dict[str, float]:
        """Noise over signal on held-out samples, the mean of all outputs."""
        return {NOISE: self._noise(load_pivot(pivot))}

    @cached_property
    def _held_out(self) -> StageResult:
        return collect_held_out(self._context, self._bundled)

    def _of_component(
        self, name: str, feeds: Iterator[Arrays], schemes: Mapping[str, Sequence[str]], rounder: Rounder, scratch: Path,
        advance: Callable[[int], None], sums: Sequence[Sum],
    ) -> Sensitivities:  # fmt: skip
        graph = self._bundle[name].graph
        outputs = [v.name or "" for v in graph.graph.outputs if is_float(v)]
        generator = torch.Generator().manual_seed(self._context.request.seed)
        fed: list[Arrays] = []
        budget = int(ACTIVATION_SHARE * memory_limit(self._context.request))
        with Activations(scratch, budget) as activations:
            stream = Stream(lambda _: graph, _kept(feeds, fed), outputs, activations, best_device())
            sensitivities = Sensitivities(schemes, rounder, stream.count, activations, advance, sums)
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
        return sensitivities

    def _rows(self, component: str, feeds: Arrays, results: Arrays) -> Mapping[str, tuple[int, int, int]]:
        """What of each output is used, as `HeldOut` has it."""
        family = family_named(self._bundle.family)
        return {} if family is None else family.meaningful_rows(component, feeds, results)

    def _noise(self, pivot: ModelBundle) -> float:
        ratios: list[float] = []
        for component in pivot:
            if component.name not in self._components:
                continue
            known = load_held_out(self._held_out, component.name)
            executor = OrtExecutor(with_float_ends(component.graph))
            results = [executor.run(feeds) for feeds in known.feeds]
            for name in known.outputs[0]:
                expected = known.used(known.outputs, name)
                signal = float(np.square(expected).sum())
                if signal:
                    ratios.append(float(np.square(expected - known.used(results, name)).sum()) / signal)
        return float(np.mean(ratios))


def _advance(advance: Callable[[int], None], before: int, done: int) -> None:
    advance(before + done)


def _kept(feeds: Iterator[Arrays], fed: list[Arrays]) -> Iterator[Arrays]:
    """The same feeds, each remembered."""
    for arrays in feeds:
        fed.append(arrays)
        yield arrays
