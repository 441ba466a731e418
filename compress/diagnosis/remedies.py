"""What a recipe could do about a tensor, within what the target takes: candidates, to be tried and measured."""

import glob
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any, get_args

from pocketport.calibration.observers import OBSERVERS
from pocketport.compress.algorithms import ALGORITHMS, PALETTE_ALGORITHMS
from pocketport.compress.diagnosis.switches import Switch
from pocketport.compress.diagnosis.tensors import Fit
from pocketport.compress.planning.legality import Legality
from pocketport.compress.planning.plan import TensorKind, TensorPlan
from pocketport.compress.recipe import AlgorithmName, Rule
from pocketport.compress.schemes import Granularity, Scheme

MUCH_CLIPPED = 1e-3  # share of values cut off above which a wider range is the first thing to try
PALETTE_GROUPS = (16, 1)
LINEAR_OPS = frozenset({"Gemm", "MatMul"})


class Cost(IntEnum):
    """What a remedy costs on the device; the least is preferred among remedies that help about alike."""

    NOTHING = 0
    BITS = 1
    FLOAT = 2


@dataclass(frozen=True)
class Remedy:
    """One change to the recipe.

    Attributes:
        name: in words, for tables.
        cost: see Cost.
        rules: one a node.
    """

    name: str
    cost: Cost
    rules: tuple[Rule, ...]


def remedies(
    component: str, switch: Switch, legality: Legality, *, fit: Fit | None = None, columns: int = 0
) -> list[Remedy]:
    """What could help the tensors of a switch, the most promising first.

    Args:
        component: that the switch belongs to.
        switch: the tensors.
        legality: of the target; a scheme that it does not take is not among the remedies.
        fit: how the leader's range fits its values, where that is known: it decides which observer comes first.
        columns: input dimension of a linear layer's weight, which blocks must divide.
    """
    leader = switch.leader
    scheme = Scheme.parse(leader.scheme)
    if leader.kind is TensorKind.ACTIVATION:
        found = [*_observers(leader, fit), *_wider(scheme, legality), *_float_activation(scheme, legality)]
        members = [t for t in switch.tensors if t.kind is TensorKind.ACTIVATION]
    elif leader.kind is TensorKind.WEIGHT:
        found = [
            *_algorithms(leader),
            *_blocks(leader, scheme, legality, columns),
            *_palettes(leader, scheme, legality),
        ]
        found += [*_more_bits(scheme, legality), *_float_weight(legality)]
        members = [t for t in switch.tensors if t.kind is TensorKind.WEIGHT]
    elif leader.kind is TensorKind.CONSTANT:
        found, members = [*_wider(scheme, legality), *_float_activation(scheme, legality)], [leader]
    else:
        found, members = _float_weight(legality), [leader]
    nodes = dict.fromkeys((t.op, t.node) for t in members)
    return [
        Remedy(
            name,
            cost,
            tuple(Rule(component=component, op=op, name=glob.escape(node), **keys) for op, node in nodes),
        )
        for name, cost, keys in found
    ]


_Found = tuple[str, Cost, Mapping[str, Any]]


def _observers(tensor: TensorPlan, fit: Fit | None) -> Iterator[_Found]:
    if tensor.algorithm not in OBSERVERS:  # the range is given: a softmax, a sigmoid
        return
    narrow = fit is None or fit.clipped < MUCH_CLIPPED
    order = ("mse", "percentile", "entropy", "min_max") if narrow else ("min_max", "percentile", "mse", "entropy")
    for name in (*order, *(n for n in OBSERVERS if n not in order)):
        if name != tensor.algorithm:
            yield f"observer {name}", Cost.NOTHING, {"observer": name}


def _wider(scheme: Scheme, legality: Legality) -> Iterator[_Found]:
    for bits in sorted(int(b) for b in legality.activations):
        if scheme.activation_bits is not None and bits > scheme.activation_bits:
            wider = replace(scheme, activation_bits=bits)
            yield f"{bits}-bit activation", Cost.BITS, {"scheme": str(wider)}


def _float_activation(scheme: Scheme, legality: Legality) -> Iterator[_Found]:
    if scheme.weight_bits is None:
        return
    bits = min(legality.float_bits, default=0)
    if bits:
        yield (
            f"fp{bits} activation",
            Cost.FLOAT,
            {"scheme": str(replace(scheme, activation_bits=None, float_bits=bits))},
        )


def _algorithms(tensor: TensorPlan) -> Iterator[_Found]:
    for name in PALETTE_ALGORITHMS if tensor.granularity == Granularity.PALETTE else ALGORITHMS:
        named = name in get_args(AlgorithmName) and name != tensor.algorithm
        if named and (name != "gptq" or tensor.op in LINEAR_OPS):
            yield f"algorithm {name}", Cost.NOTHING, {"algorithm": name}


def _blocks(tensor: TensorPlan, scheme: Scheme, legality: Legality, columns: int) -> Iterator[_Found]:
    rule = legality.weights.get(str(scheme.weight_bits))
    palette = scheme.granularity is Granularity.PALETTE
    if rule is None or tensor.op not in LINEAR_OPS or "b" not in rule.granularities or palette:
        return
    whole = [b for b in sorted(rule.blocks, reverse=True) if b < columns and columns % b == 0]
    smaller = [b for b in whole if not scheme.block or b < scheme.block]
    for block in dict.fromkeys((*smaller[:1], *smaller[-1:])):
        finer = replace(scheme, granularity=Granularity.BLOCK, block=block)
        yield f"blocks of {block}", Cost.BITS, {"scheme": str(finer)}


def _palettes(tensor: TensorPlan, scheme: Scheme, legality: Legality) -> Iterator[_Found]:
    """Tables for fewer channels, and larger tables."""
    if legality.palettes is None or scheme.granularity is not Granularity.PALETTE:
        return
    for group in PALETTE_GROUPS if legality.palettes.grouped else ():
        if group < tensor.block and tensor.block % group == 0:
            yield f"palettes of {group} channels", Cost.BITS, {"scheme": str(replace(scheme, group=group))}
    for bits in sorted(legality.palettes.bits):
        if bits > tensor.bits:
            yield f"{bits}-bit palette", Cost.BITS, {"scheme": str(replace(scheme, weight_bits=bits))}


def _more_bits(scheme: Scheme, legality: Legality) -> Iterator[_Found]:
    for bits in sorted(int(b) for b in legality.weights):
        if scheme.weight_bits is not None and bits > scheme.weight_bits:
            rule = legality.weights[str(bits)]
            kept = scheme.granularity.value in rule.granularities and (not scheme.block or scheme.block in rule.blocks)
            more = replace(scheme, weight_bits=bits)
            if not kept:
                more = replace(more, granularity=Granularity.CHANNEL, block=0, group=0)
            yield f"{bits}-bit weight", Cost.BITS, {"scheme": str(more)}


def _float_weight(legality: Legality) -> list[_Found]:
    return [("float", Cost.FLOAT, {"scheme": "float"})] if 32 in legality.float_bits else []
