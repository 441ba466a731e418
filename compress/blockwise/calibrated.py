"""Weights that need calibration data: layer after layer, each on what the quantized layers before it give.

Each layer runs once over all samples, in stages: up to the input of some weights, whose statistics are summed on the
way; those weights are quantized and take their new values; then on from there (Frantar et al. 2022, section 3: true
sequential). What the next stage needs is kept, see `Activations`. Where the error of earlier weights is to be made up
for, see `Drift`, the same stages are run with the float weights beside it.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir
import torch
from torch import Tensor

from pocketport.compress.blockwise.activations import SPILL_NAME, Activations
from pocketport.compress.blockwise.damping import Sharer, searched_damping
from pocketport.compress.blockwise.drift import target
from pocketport.compress.blockwise.gptq import solve
from pocketport.compress.blockwise.journal import Journal
from pocketport.compress.blockwise.options import GptqOptions
from pocketport.compress.blockwise.rounding import form_of, pack_ggml
from pocketport.compress.blockwise.samples import Samples, float_chain, taken_in
from pocketport.compress.blockwise.segments import Segment, Stage, segments, stages
from pocketport.compress.blockwise.sums import Sums
from pocketport.compress.blockwise.timing import Timing
from pocketport.compress.executors.ort_executor import Arrays
from pocketport.compress.executors.torch_executor import Values, WeightCache, last_uses, run_nodes
from pocketport.compress.formats.contract import WeightPlan
from pocketport.compress.quantized_weights import Quantized
from pocketport.compress.structure import is_constant, weight_operand
from pocketport.errors import UsageError


@dataclass(frozen=True)
class Settings:
    """How a calibrated run is done.

    Attributes:
        device: where it computes.
        budget: bytes of activations kept in memory.
        advance: called with the number of tensors done.
    """

    device: torch.device
    budget: int
    advance: Callable[[int], None]


def calibrate(
    graph: ir.Model,
    plans: Sequence[WeightPlan],
    feeds: Iterator[Arrays],
    journal: Journal,
    settings: Settings,
    timing: Timing,
) -> None:
    """Quantize the weights of one component that need data, and write a part for each layer.

    Args:
        graph: the component.
        plans: of its weights, with the algorithms ``gptq`` or ``importance``.
        feeds: the component's inputs, sample after sample; beside them ``row_weights`` [S] ≥ 0, how much each row counts
            (padding: 0), where rows are not all the same.
        journal: of the parts; layers that it has are not done again.
        settings: see `Settings`.
        timing: takes the seconds.

    Raises:
        UsageError: there are no samples, or too few for a damping search.
        InputError: an op can't be run in torch.
        VerificationError: a Hessian is not positive definite.
    """
    wanted = {plan.tensor: plan for plan in plans}
    with Activations(journal.directory / SPILL_NAME, settings.budget) as activations:
        timing.start("samples")
        with timing.phase("load"):
            samples, varying = taken_in(graph, feeds, activations, settings.device)
            _check_search(plans, samples.count)
            exact = float_chain(samples) if any(_options(plan).propagation for plan in plans) else None
        cuts = segments(varying)
        while not _uses(cuts[-1].nodes, wanted):
            cuts.pop()
        parts = [f"{graph.graph.name}-{cut.layer:04}" for cut in cuts]
        first = _resumed(journal, parts, samples, settings)
        for index in range(first, len(cuts)):
            timing.start(f"layer {cuts[index].layer}")
            quantized = _Layer(cuts[index], wanted, samples, exact, settings, timing).run()
            with timing.phase("write"):
                if index + 1 < len(cuts):
                    journal.save_state(parts[index], activations, samples.count)
                journal.write(parts[index], quantized)
                if index:
                    journal.drop_state(parts[index - 1])
            settings.advance(len(quantized))


@dataclass(frozen=True)
class _Use:
    """A weight that is to be quantized, its plan, and the residual that its outputs are added to ("" for none)."""

    value: ir.Value
    plan: WeightPlan
    residual: str


def _uses(nodes: Iterable[ir.Node], wanted: Mapping[str, WeightPlan]) -> dict[str, list[_Use]]:
    """Weights that are to be quantized, by the activation that meets them, in topological order."""
    found: dict[str, list[_Use]] = {}
    for node in nodes:
        operand = weight_operand(node)
        plan = None if operand is None else wanted.get(operand.value.name or "")
        if operand is not None and plan is not None and operand.activation is not None:
            found.setdefault(operand.activation.name or "", []).append(_Use(operand.value, plan, _residual(node)))
    return found


def _residual(node: ir.Node) -> str:
    """What an Add joins to a node's output, "" where nothing else follows it than that."""
    product = node.outputs[0]
    followers = product.consumers()
    if len(followers) != 1 or followers[0].op_type != "Add":
        return ""
    others = [v for v in followers[0].inputs if v is not None and v is not product and not is_constant(v)]
    return (others[0].name or "") if others and others[0].shape == product.shape else ""


def _options(plan: WeightPlan) -> GptqOptions:
    return GptqOptions.of(plan.options if plan.algorithm == "gptq" else {})


def _check_search(plans: Sequence[WeightPlan], samples: int) -> None:
    every = max(_options(plan).damping_search for plan in plans)
    if samples < every:
        raise UsageError(
            f"damping_search: {every} holds out every {every}th calibration sample, and there are {samples}",
            where="recipe, algorithm_options", fix=f"give at least {every} samples, or a damping in its place",
        )  # fmt: skip


def _resumed(journal: Journal, parts: Sequence[str], samples: Samples, settings: Settings) -> int:
    """The first layer that is to be done; activations are then those that it starts with."""
    first = next((i for i, part in enumerate(parts) if not journal.done(part)), len(parts))
    while 0 < first < len(parts) and not journal.has_state(parts[first - 1]):
        first -= 1  # its activations are gone: the layers before it are run again
    if 0 < first < len(parts):
        for sample in range(samples.count):
            for name in samples.activations.names(sample):
                samples.activations.drop(name, sample)
        journal.load_state(parts[first - 1], samples.activations)
    for part in parts[:first]:
        settings.advance(journal.tensors(part))
    return first


class _Layer:
    """One segment on its way through its stages."""

    def __init__(
        self, cut: Segment, wanted: Mapping[str, WeightPlan], samples: Samples, exact: Samples | None,
        settings: Settings, timing: Timing,
    ) -> None:  # fmt: skip
        self.samples, self.exact, self.settings, self.timing = samples, exact, settings, timing
        self.uses = _uses(cut.nodes, wanted)
        self.weights, self.exact_weights = WeightCache(settings.device), WeightCache(settings.device)
        self.squares: dict[str, Tensor] = {}
        self.rows: defaultdict[str, float] = defaultdict(float)
        solved = [name for name, uses in self.uses.items() if any(use.plan.algorithm == "gptq" for use in uses)]
        self.stages = stages(cut, solved, [name for name in self.uses if name not in solved])

    def run(self) -> dict[str, Quantized]:
        """Every weight of the segment, quantized."""
        quantized: dict[str, Quantized] = {}
        for stage in self.stages:
            sums = self._forward(stage)
            if sums is not None:
                quantized |= self._solved(stage.observed, sums)
        for name, squares in self.squares.items():
            importance = squares / self.rows[name]
            for use in self.uses[name]:
                with self.timing.phase("pack"):
                    stored = self.weights.get(use.value).cpu()
                    quantized[use.plan.tensor] = pack_ggml(use.plan, stored, importance.cpu())
        return quantized

    def _forward(self, stage: Stage) -> Sums | None:
        """All samples through a stage; what is summed over the activation that it observes."""
        sums: Sums | None = None
        extra = {stage.observed, *stage.watched} - {""}
        uses = last_uses(stage.nodes, set(stage.kept) | extra | self.samples.shared.keys())
        residuals = {use.residual for use in self.uses[stage.observed]} & stage.kept if stage.observed else set()
        names = [stage.observed, *sorted(residuals if self.exact else ())]
        every = _options(self.uses[stage.observed][0].plan).damping_search if stage.observed else 0
        for sample in range(self.samples.count):
            chains = [self._advanced(self.samples, self.weights, stage, sample, uses)]
            for name in stage.watched:
                with self.timing.phase("statistics"):
                    self._add_squares(name, *self.samples.weighted(chains[0][name], sample))
            if self.exact is not None:
                chains.append(self._advanced(self.exact, self.exact_weights, stage, sample, uses))
            if stage.observed:
                rows = [self.samples.weighted(values[name], sample)[0] for values in chains for name in names]
                exact, device = self.exact is not None, self.settings.device
                with self.timing.phase("hessian"):
                    sums = sums or Sums(names, rows[0].shape[1], exact, device, split=every > 0)
                    (sums.held if sums.held is not None and sample % every == every - 1 else sums).add(rows)
        if sums is not None:
            with self.timing.phase("hessian"):
                sums.finish()
        return sums

    def _advanced(
        self, samples: Samples, weights: WeightCache, stage: Stage, sample: int, uses: Mapping[str, ir.Node]
    ) -> Values:
        """One sample through a stage; what is needed later is kept."""
        with self.timing.phase("load"):
            values = samples.values(sample, self.settings.device)
        with self.timing.phase("forward"):
            run_nodes(stage.nodes, values, weights, uses)
        with self.timing.phase("load"):
            samples.keep(stage.kept, sample, values)
        return values

    def _add_squares(self, name: str, rows: Tensor, weight: float) -> None:
        self.rows[name] += weight
        squares = rows.square().sum(0)
        self.squares[name] = squares if name not in self.squares else self.squares[name] + squares

    def _solved(self, observed: str, sums: Sums) -> dict[str, Quantized]:
        """All weights that meet one activation; they take their new values."""
        uses = self.uses[observed]
        options = [_options(use.plan) for use in uses]
        damping = options[0].damping
        if sums.held is not None:
            with self.timing.phase("damping"):
                damping = searched_damping(
                    sums,
                    [
                        Sharer(self.weights.get(use.value), form_of(use.plan), use.residual, wanted.propagation)
                        for use, wanted in zip(uses, options, strict=True)
                    ],
                )
                sums.merge_held()
        with self.timing.phase("factor"):
            factor = sums.hessian.factor(damping, whole=any(o.sweeps for o in options))
        quantized: dict[str, Quantized] = {}
        for use, wanted in zip(uses, options, strict=True):
            form = form_of(use.plan)
            with self.timing.phase("solve"):
                weight = self.weights.get(use.value)
                if sums.drift is not None and wanted.propagation:
                    missing = sums.drift.missing(weight, use.residual)
                    weight = target(weight, missing, factor, wanted.propagation)
                integers, grid = solve(weight, factor, form, wanted.sweeps)
                self.weights.replace(use.plan.tensor, grid.dequantized(integers))
                quantized[use.plan.tensor] = form.stored(integers, grid)
        return quantized
