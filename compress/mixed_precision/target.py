"""The layers of a bundle on a target, the schemes that are legal for each, and what rounding to them gives."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from pocketport.calibration.statistics import SecondMoment, Statistics, side_by_side
from pocketport.compress.bundle import ModelBundle
from pocketport.compress.executors.torch_executor import OPS
from pocketport.compress.graph import dimensions
from pocketport.compress.mixed_precision.allocation import Layer, Node, literal
from pocketport.compress.mixed_precision.sensitivity import Inputs
from pocketport.compress.mixed_precision.summed_inputs import Sum
from pocketport.compress.pivot.input_scaling import Numbers, input_factors
from pocketport.compress.pivot.summed_weights import residuals, rounding_order
from pocketport.compress.pivot.weights import as_laid, as_matrix, quantize_weight
from pocketport.compress.planning.legality import Legality
from pocketport.compress.planning.plan import ComponentPlan, Plan, TensorKind, TensorPlan, make_plan
from pocketport.compress.recipe import Recipe, Rule, with_rules
from pocketport.compress.schemes import Granularity, Scheme
from pocketport.compress.structure import weight_operand
from pocketport.errors import InputError, UsageError

STEP = "decode"  # the component that runs once a token
TABLE_CHANNELS = 16  # that share one of a palette's tables, where there may be several


@dataclass(frozen=True)
class Weight:
    """A linear layer's weight in one component.

    Attributes:
        component: where it is.
        node: the node that computes with it.
        value: the constant's name.
        inputs: its input dimension, which blocks cut.
        outputs: its output channels, which palettes group.
        turned: it lies as [K, N].
        shape: as it lies.
    """

    component: str
    node: str
    value: str
    inputs: int
    outputs: int
    turned: bool
    shape: tuple[int, ...]


@dataclass(frozen=True)
class TargetLayers:
    """What a search over a target chooses among.

    Attributes:
        layers: with bytes as costs; the weights of several components that have one name are one layer.
        plans: scheme → ``component/value`` → its plan.
        whole: scheme → the plan of all components in which weights have it.
        members: layer → the keys of all its weights.
        components: those with layers, without a component whose layers are all another's too.
        fixed_bytes: of all constants that are not searched.
    """

    layers: tuple[Layer, ...]
    plans: Mapping[str, Mapping[str, TensorPlan]]
    whole: Mapping[str, Plan]
    members: Mapping[str, tuple[str, ...]]
    components: tuple[str, ...]
    fixed_bytes: int

    @property
    def elements(self) -> int:
        """Of all weights that are searched."""
        return sum(layer.elements for layer in self.layers)

    def schemes(self, component: str) -> dict[str, list[str]]:
        """Weights of a component whose errors are wanted, and the schemes of their layers."""
        return {
            key.partition("/")[2]: list(layer.costs)
            for layer in self.layers
            for key in layer.weights
            if key.startswith(f"{component}/")
        }

    def timed(self, gbps: float) -> tuple[Layer, ...]:
        """The layers with milliseconds as costs: of reading their weights once at `gbps` 10⁹ bytes a second.

        Where there is a component ``decode`` that is one token's time, and weights that it lacks cost nothing.
        """
        decodes = any(key.startswith(f"{STEP}/") for keys in self.members.values() for key in keys)
        timed = []
        for layer in self.layers:
            keys = [k for k in self.members[layer.name] if not decodes or k.startswith(f"{STEP}/")]
            costs = {s: sum(self.plans[s][k].bytes_after for k in keys) / gbps / 1e6 for s in layer.costs}
            timed.append(replace(layer, costs=costs))
        return tuple(timed)

    @property
    def scales_inputs(self) -> bool:
        """Whether a layer's weight is multiplied by factors of its input's channels before it is rounded."""
        return any(t.scaled for plan in self.whole.values() for component in plan for t in component.tensors)

    def factors(self, bundle: ModelBundle, statistics: Statistics) -> dict[str, dict[str, Numbers]]:
        """Scheme → ``component/tensor`` → factors, as `input_factors` has them where all weights have that scheme."""
        return {scheme: input_factors(bundle, plan, statistics) for scheme, plan in self.whole.items()}

    @property
    def summed(self) -> bool:
        """Whether there are layers of a sum, which are rounded one after the other."""
        return any(t.terms for plan in self.whole.values() for component in plan for t in component.tensors)

    def sums(self, component: str, statistics: Statistics) -> list[Sum]:
        """Those of a component; where schemes differ in what takes part, the ones with most layers.

        Args:
            component: its name.
            statistics: of a calibration for all plans of `whole`.
        """
        free = set(self.schemes(component))
        found = []
        for terms in sorted(
            (own for p in self.whole.values() for own in _sums_of(p[component])), key=len, reverse=True
        ):
            weights = tuple(term.weight for term in terms)
            if free.issuperset(weights):
                free.difference_update(weights)
                moment = statistics.moments[f"{component}/{side_by_side(term.source for term in terms)}"]
                inputs = [statistics.moments[f"{component}/{term.source}"] for term in terms]
                order = rounding_order(inputs)
                left = residuals(moment, [len(x.diagonal) for x in inputs], order)
                shares = tuple(torch.from_numpy(left[place].shares) for place in order)
                found.append(Sum(tuple(weights[place] for place in order), shares))
        return found

    def rounded(
        self, key: str, schemes: Sequence[str], weight: Tensor, inputs: Inputs,
        factors: Mapping[str, Mapping[str, Numbers]],
    ) -> Iterator[Tensor]:  # fmt: skip
        """A `Rounder` for weights by ``component/value``: by the algorithms of the plans, which see the float model's inputs.

        Args:
            key, schemes, weight, inputs: see `Rounder`.
            factors: of the method above.
        """
        component = key.partition("/")[0]
        hessian = inputs.hessian.cpu().numpy()
        for scheme in schemes:
            plan = self.plans[scheme][key]
            if not plan.quantized:
                yield weight
                continue
            own = factors.get(scheme, {}).get(f"{component}/{plan.activation}")
            s = np.ones(len(hessian), np.float32) if own is None else own.astype(np.float32)
            full = np.asarray(hessian / np.outer(s, s), np.float32)
            moment = SecondMoment(full.diagonal().astype(np.float64), max(inputs.rows, 1), full)
            matrix = weight.cpu().numpy() * s
            done = quantize_weight(as_laid(matrix, plan), plan, moment, None)
            back = as_matrix(done.encoding.dequantize(done.integers), plan)
            yield torch.from_numpy(back / s).to(weight.device)


@dataclass(frozen=True)
class _Term:
    """The weight of a layer of a sum, and its input in the float graph."""

    weight: str
    source: str


def _sums_of(plan: ComponentPlan) -> Iterator[tuple[_Term, ...]]:
    sources = plan.sources
    weights = {t.activation: t.tensor for t in plan.tensors if t.terms}
    for terms in {t.terms: None for t in plan.tensors if t.terms}:
        yield tuple(_Term(weights[x], sources.get(x, x)) for x in terms)


def target_layers(
    bundle: ModelBundle, base: Recipe, target: str, legality: Legality, schemes: Sequence[str] | None
) -> TargetLayers:
    """Plan the bundle once for each width and granularity of weights; activations keep what the base recipe says.

    Palettes have one table, or one for every `TABLE_CHANNELS`; without names, those that the base recipe's algorithm does
    not make are left out.

    Args:
        bundle: float graphs.
        base: whose rules come first.
        target: ``vendor/soc``.
        legality: of it.
        schemes: to choose among; None: all that are legal.

    Raises:
        UsageError: a scheme that is not legal for any layer, or nothing to choose.
        InputError: a component has an op that the torch executor lacks.
    """
    weights = list(_weights(bundle))
    plan = make_plan(bundle, base, target, legality)
    planned = {f"{c.component}/{t.tensor}": t for c in plan for t in c.tensors if t.kind is TensorKind.WEIGHT}
    weights = [w for w in weights if (p := planned.get(_key(w))) is not None and p.quantized]
    plans: dict[str, dict[str, TensorPlan]] = {}
    whole: dict[str, Plan] = {}
    for form in _forms(legality):
        rules = _rules(weights, planned, form, schemes)
        if rules:
            try:
                made = make_plan(bundle, with_rules(base, target, list(rules.values())), target, legality)
            except UsageError:
                if schemes is not None or form.granularity is not Granularity.PALETTE:
                    raise
                continue
            whole |= dict.fromkeys((str(rule.scheme) for rule in rules.values()), made)
            _add(plans, made, rules)
    if unknown := set(schemes or ()) - plans.keys():
        raise UsageError(
            f"no layer takes {min(unknown)} on {target}",
            where="--schemes",
            fix=f"choose from {', '.join(sorted(plans))}",
        )
    found = list(_layers(weights, plans))
    layers = tuple(layer for layer, _ in found)
    if not layers:
        raise UsageError("there is nothing to choose", where=target, fix="name more schemes, or another recipe")
    searched = {key for layer in layers for key in layer.weights}
    members = {layer.name: keys for layer, keys in found}
    every = {key for keys in members.values() for key in keys}
    fixed = sum(t.bytes_after for c in plan for t in c.tensors if f"{c.component}/{t.tensor}" not in every)
    components = tuple(c.name for c in bundle if any(key.startswith(f"{c.name}/") for key in searched))
    for name in components:
        _check_ops(name, bundle[name].graph)
    return TargetLayers(layers, plans, whole, members, components, fixed)


def _key(weight: Weight) -> str:
    return f"{weight.component}/{weight.value}"


def _weights(bundle: ModelBundle) -> Iterator[Weight]:
    for component in bundle:
        for node in component.graph.graph:
            operand = weight_operand(node)
            if operand is not None and operand.kind == "linear" and operand.input_axis is not None:
                tensor = ir.convenience.get_const_tensor(operand.value)
                assert tensor is not None
                shape = dimensions(tensor)
                yield Weight(
                    component.name, node.name or "", operand.value.name or "", shape[operand.input_axis],
                    shape[operand.channel_axis], operand.channel_axis != 0, shape,
                )  # fmt: skip


def _forms(legality: Legality) -> Iterator[Scheme]:
    """Widths and granularities of weights, without activations; one scale for a whole weight is left out."""
    for bits, rule in legality.weights.items():
        if Granularity.CHANNEL in rule.granularities:
            yield Scheme(int(bits))
        if Granularity.BLOCK in rule.granularities:
            yield from (Scheme(int(bits), Granularity.BLOCK, block) for block in rule.blocks)
    if legality.palettes is not None:
        for width in legality.palettes.bits:
            yield Scheme(width, Granularity.PALETTE)
            if legality.palettes.grouped:
                yield Scheme(width, Granularity.PALETTE, group=TABLE_CHANNELS)


def _rules(
    weights: Sequence[Weight], planned: Mapping[str, TensorPlan], form: Scheme, schemes: Sequence[str] | None
) -> dict[str, Rule]:
    """A rule for every weight that the form fits, by the weight's key."""
    rules = {}
    for weight in weights:
        own = Scheme.parse(planned[_key(weight)].scheme)
        scheme = str(replace(form, activation_bits=own.activation_bits, float_bits=own.float_bits))
        fits = not weight.inputs % (form.block or 1) and not weight.outputs % (form.group or 1)
        if fits and (schemes is None or scheme in schemes):
            rules[_key(weight)] = Rule(component=weight.component, name=literal(weight.node), scheme=scheme)
    return rules


def _add(plans: dict[str, dict[str, TensorPlan]], plan: Plan, rules: Mapping[str, Rule]) -> None:
    for component in plan:
        for tensor in component.tensors:
            key = f"{component.component}/{tensor.tensor}"
            # A palette that would be larger than float16 stays float.
            if key in rules and tensor.kind is TensorKind.WEIGHT and tensor.quantized:
                plans.setdefault(str(rules[key].scheme), {})[key] = tensor


def _layers(
    weights: Sequence[Weight], plans: Mapping[str, Mapping[str, TensorPlan]]
) -> Iterator[tuple[Layer, tuple[str, ...]]]:
    """Weights of one name and shape are one layer; their errors are those of the first component that has them."""
    groups: dict[tuple[str, tuple[int, ...]], list[Weight]] = {}
    for weight in weights:
        groups.setdefault((weight.value, weight.shape), []).append(weight)
    for group in groups.values():
        keys = [_key(w) for w in group]
        costs = {
            scheme: float(sum(own[key].bytes_after for key in keys))
            for scheme, own in plans.items()
            if all(key in own for key in keys)
        }
        if costs:
            nodes = tuple(Node(w.component, w.node) for w in group)
            elements = sum(next(own[key].elements for own in plans.values() if key in own) for key in keys)
            yield Layer(nodes[0].name, nodes, (keys[0],), elements, costs), tuple(keys)


def _check_ops(component: str, graph: ir.Model) -> None:
    missing = sorted({node.op_type for node in graph.graph} - OPS.keys())
    if missing:
        raise InputError(
            f"gradients can't be taken through {', '.join(missing)}", where=f"component {component}",
            fix="write its schemes into a recipe by hand",
        )  # fmt: skip
