"""Quantize the weights of a whole checkpoint into a directory, out of core, and resume where a run was killed."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch

from pocketport.compress.blockwise.calibrated import Settings, calibrate
from pocketport.compress.blockwise.estimate import activation_budget
from pocketport.compress.blockwise.journal import Journal
from pocketport.compress.blockwise.memory import return_large_blocks
from pocketport.compress.blockwise.rounding import rounded
from pocketport.compress.blockwise.segments import layer_number
from pocketport.compress.blockwise.timing import Timing
from pocketport.compress.bundle import ModelBundle
from pocketport.compress.executors.ort_executor import Arrays
from pocketport.compress.formats.contract import WeightPlan
from pocketport.compress.planning.weights import CALIBRATED
from pocketport.compress.sources.source import Source
from pocketport.compress.torch_device import best_device
from pocketport.errors import UsageError


@torch.inference_mode()
def quantize_weights(
    source: Source,
    bundle: ModelBundle,
    plans: Sequence[WeightPlan],
    directory: Path,
    *,
    feeds: Mapping[str, Iterator[Arrays]] | None = None,
    memory_limit: int,
    progress: Callable[[int, int], None] | None = None,
) -> Timing:
    """Quantize every tensor that is planned to be, and write them as `QuantizedWeights`.

    Memory holds one layer's weights, one Hessian with its factor, and activations up to what `memory_limit` leaves; the
    rest of the activations is in a file. The bytes do not depend on the limit, nor on kills.

    Args:
        source: the checkpoint.
        bundle: its graphs.
        plans: tensors that become integers.
        directory: new and empty, or what a killed run left of it.
        feeds: by component, the calibration samples; needed for calibrated algorithms.
        memory_limit: bytes.
        progress: called with the tensors done and their number.

    Returns:
        Where the time went.

    Raises:
        UsageError: an algorithm needs data and there is none, or does not exist.
        InputError: an op of the graph can't be run in torch.
        VerificationError: calibration met numbers that are not finite, or a Hessian that is not positive definite.
    """
    return_large_blocks()
    timing, journal = Timing(), Journal(directory)
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        if progress:
            progress(done, len(plans))

    _without_data(source, [p for p in plans if p.algorithm not in CALIBRATED], journal, timing, advance)
    calibrated: defaultdict[str, list[WeightPlan]] = defaultdict(list)
    for plan in plans:
        if plan.algorithm in CALIBRATED:
            calibrated[plan.component].append(plan)
    for component, own in sorted(calibrated.items()):
        samples = (feeds or {}).get(component)
        if samples is None:
            raise UsageError(
                f"{own[0].algorithm} needs calibration data for it",
                where=f"component {component}",
                fix="use rtn or mse there",
            )
        settings = Settings(best_device(), activation_budget(own, memory_limit), advance)
        calibrate(bundle[component].graph, own, samples, journal, settings, timing)
    journal.finish()
    return timing


def _without_data(
    source: Source, plans: Sequence[WeightPlan], journal: Journal, timing: Timing, advance: Callable[[int], None]
) -> None:
    """A part for each layer, and for each tensor that is in none."""
    parts: defaultdict[str, list[WeightPlan]] = defaultdict(list)
    for plan in plans:
        number = layer_number(plan.tensor)
        parts[f"{plan.component}-data-free-{plan.tensor if number is None else f'{number:04}'}"].append(plan)
    timing.start("data-free")
    for part, own in sorted(parts.items()):
        if not journal.done(part):
            with timing.phase("round"):
                weights = {p.tensor: rounded(p, source.tensors[p.tensor], best_device()) for p in own}
            with timing.phase("write"):
                journal.write(part, weights)
            del weights
        advance(len(own))
