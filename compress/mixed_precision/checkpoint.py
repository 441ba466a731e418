"""The layers of a checkpoint format, the schemes that it takes for each, and what rounding to them gives."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from pocketport.compress.blockwise.gptq import Hessian, solve
from pocketport.compress.blockwise.options import GptqOptions
from pocketport.compress.blockwise.rounding import form_of, pack_ggml, rounded
from pocketport.compress.bundle import ModelBundle
from pocketport.compress.formats.contract import Format, WeightPlan
from pocketport.compress.ggml.dequantize import dequantize
from pocketport.compress.ggml.types import TYPES
from pocketport.compress.graph import clone_graph
from pocketport.compress.mixed_precision.allocation import Layer, Node
from pocketport.compress.mixed_precision.sensitivity import Inputs
from pocketport.compress.planning.weights import CALIBRATED_COMPONENT, Use, find_uses, plan_weights
from pocketport.compress.quantized_weights import PackedWeight, Quantized
from pocketport.compress.recipe import Recipe, Rule
from pocketport.compress.sources.source import Source
from pocketport.errors import UsageError

SCHEMES = (
    "w2cfp16", "w2b64fp16", "w2b32fp16", "w3cfp16", "w3b64fp16", "w3b32fp16", "w4cfp16", "w4b128fp16", "w4b64fp16", "w4b32fp16",
    "w8cfp16", "w8b128fp16", "w8b64fp16", "w8b32fp16", "q2_k", "q3_k", "iq4_xs", "q4_k", "q5_k", "q6_k", "iq4_nl", "q4_0", "q5_0",
    "q8_0",
)  # fmt: skip
"""What is tried where the user names nothing: of these what the format takes."""

JOINING = frozenset({"gptq", "compressed-tensors"})
"""Formats whose engines (vLLM) join layers that share an input into one, which has one scheme."""

FLOAT = "float"


@dataclass(frozen=True)
class CheckpointLayers:
    """What a search over a checkpoint chooses among.

    Attributes:
        layers: with bytes as costs.
        plans: scheme → weight → its plan.
        fixed_bytes: of all tensors that are not searched.
    """

    layers: tuple[Layer, ...]
    plans: Mapping[str, Mapping[str, WeightPlan]]
    fixed_bytes: int

    @property
    def schemes(self) -> dict[str, list[str]]:
        """Weight → the schemes of its layer."""
        return {weight: list(layer.costs) for layer in self.layers for weight in layer.weights}

    @property
    def elements(self) -> int:
        """Of all weights that are searched."""
        return sum(layer.elements for layer in self.layers)

    def rounded(self, name: str, schemes: Sequence[str], weight: Tensor, inputs: Inputs) -> Iterator[Tensor]:
        """A `Rounder`: by the algorithms that the recipe has, which see the inputs of the float model."""
        plans = [self.plans[scheme][name] for scheme in schemes]
        options = next((GptqOptions.of(p.options) for p in plans if p.algorithm == "gptq"), None)
        factor = None
        if options is not None:
            hessian = Hessian(weight.shape[1], weight.device, inputs.hessian.clone())
            factor = hessian.factor(options.damping, whole=bool(options.sweeps))
        for plan in plans:
            if options is not None and factor is not None and plan.algorithm == "gptq":
                integers, grid = solve(weight, factor, form_of(plan), options.sweeps)
                yield grid.dequantized(integers)
            elif plan.algorithm == "importance":
                yield as_floats(pack_ggml(plan, weight.cpu(), inputs.importance.cpu()), name).to(weight.device)
            elif plan.quantized and plan.algorithm != "stored":
                yield as_floats(rounded(plan, ir.tensor(weight.cpu().numpy()), weight.device), name).to(weight.device)
            else:
                yield weight


def checkpoint_layers(
    source: Source, bundle: ModelBundle, base: Recipe, form: Format, variant: str, schemes: Sequence[str] | None,
    *, joined: bool | None = None,
) -> CheckpointLayers:  # fmt: skip
    """Plan the checkpoint once in every scheme; no weight is read.

    Args:
        source: the checkpoint.
        bundle: its graphs.
        base: whose rules come first (algorithms, what stays float).
        form: the format.
        variant: of it.
        schemes: to choose among; None: those of `SCHEMES` that the format takes.
        joined: layers that share an input get one scheme; None: in the formats of `JOINING`.

    Raises:
        UsageError: the format takes none of the schemes, or not one of those that were named.
    """
    uses = {n: u for n, u in find_uses(bundle).items() if u.component == CALIBRATED_COMPONENT and u.role == "linear"}
    fixed = plan_weights(source, bundle, base, form, variant)
    left = {p.tensor for p in fixed if p.tensor in uses and p.quantized}
    plans: dict[str, dict[str, WeightPlan]] = {}
    for scheme in schemes or SCHEMES:
        try:
            taken = _taken(source, bundle, base, form, variant, scheme, left)
        except UsageError:
            if schemes:
                raise
            continue
        if taken:
            plans[scheme] = taken
        elif schemes:
            raise UsageError(
                f"no layer takes {scheme}",
                where=f"format {form.name}",
                fix=f"choose others, e.g. {form.default_scheme}",
            )
    layers = tuple(_layers(uses, plans, joined=form.name in JOINING if joined is None else joined))
    if not layers:
        raise UsageError(
            "the format takes none of the schemes", where=f"format {form.name}", fix="name schemes that it takes"
        )
    searched = {weight for layer in layers for weight in layer.weights}
    return CheckpointLayers(layers, plans, sum(p.bytes_after for p in fixed if p.tensor not in searched))


def _taken(
    source: Source, bundle: ModelBundle, base: Recipe, form: Format, variant: str, scheme: str, left: set[str]
) -> dict[str, WeightPlan]:
    """Plans of the weights that become just this."""
    rule = Rule(component=CALIBRATED_COMPONENT, scheme=scheme, fallback=[FLOAT])
    recipe = base.model_copy(update={"rules": [*base.rules, rule]})
    planned = plan_weights(source, bundle, recipe, form, variant, only=sorted(left))
    return {p.tensor: p for p in planned if (not p.quantized if scheme == FLOAT else p.scheme == scheme)}


def _layers(uses: Mapping[str, Use], plans: Mapping[str, Mapping[str, WeightPlan]], *, joined: bool) -> Iterator[Layer]:
    groups: dict[str, list[str]] = {}
    for name, use in uses.items():
        if any(name in own for own in plans.values()):
            groups.setdefault(use.activation if joined else name, []).append(name)
    for weights in groups.values():
        costs = {
            scheme: float(sum(own[w].bytes_after for w in weights))
            for scheme, own in plans.items()
            if all(w in own for w in weights)
        }
        if costs:
            nodes = tuple(Node(uses[w].component, uses[w].node) for w in weights)
            elements = sum(int(np.prod(next(own[w].shape for own in plans.values() if w in own))) for w in weights)
            yield Layer(nodes[0].name, nodes, tuple(weights), elements, costs)


def as_floats(weight: Quantized, name: str) -> Tensor:
    """What a quantized weight stands for, float32."""
    if isinstance(weight, PackedWeight):
        return torch.from_numpy(dequantize(TYPES[weight.type], weight.data, name).reshape(weight.shape))
    return torch.from_numpy(weight.dequantized())


class Composed(Mapping[str, Quantized]):
    """Quantized weights from several models.

    Args:
        origins: of each weight, all those of the model that it is taken from.
    """

    def __init__(self, origins: Mapping[str, Mapping[str, Quantized]]) -> None:
        self._origins = origins

    def __getitem__(self, name: str) -> Quantized:
        return self._origins[name][name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._origins)

    def __len__(self) -> int:
        return len(self._origins)


class Dequantized(Mapping[str, Tensor]):
    """Quantized weights as the floats that they stand for, each made when it is asked for.

    Args:
        weights: see above.
        only: their names, where not all of them are wanted.
    """

    def __init__(self, weights: Mapping[str, Quantized], only: Collection[str] | None = None) -> None:
        self._weights = weights
        self._names = list(weights) if only is None else [name for name in weights if name in only]

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        return as_floats(self._weights[name], name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def with_weights(bundle: ModelBundle, weights: Mapping[str, Tensor]) -> ModelBundle:
    """A new bundle whose initializers have these values, where they are named; its graphs are copies."""
    graphs = {}
    for component in bundle:
        graphs[component.name] = clone_graph(component.graph)
        for name, value in graphs[component.name].graph.initializers.items():
            if name in weights:
                value.const_value = ir.tensor(weights[name].numpy(), name=name)
    return bundle.with_graphs(graphs)
