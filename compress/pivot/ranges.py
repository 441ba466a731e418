"""From what calibration saw of activations to one encoding for every group of them."""

import math
from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from pocketport.calibration.capture import MOVEMENT_OPS
from pocketport.calibration.encodings import INTEGER_RANGES, Encoding, encoding_for_range
from pocketport.calibration.observers import EXTREMES, Histogram, make_observer
from pocketport.calibration.statistics import Statistics
from pocketport.compress.bundle import ModelBundle
from pocketport.compress.graph import constant
from pocketport.compress.planning.plan import Plan, TensorKind, TensorPlan
from pocketport.errors import InputError

FLAT_BEYOND = {
    "Gelu": (-5.0, math.inf), "HardSwish": (-3.0, math.inf), "Relu": (0.0, math.inf), "Sigmoid": (-11.0, 11.0),
    "Tanh": (-6.0, 6.0),
}  # fmt: skip
"""Where functions are constant, or within 16 bits as good as constant: their input may be clipped there."""
GIVES = {
    "HardSigmoid": (0.0, 1.0), "Relu": (0.0, math.inf), "Sigmoid": (0.0, 1.0), "Softmax": (0.0, 1.0), "Tanh": (-1.0, 1.0),
}  # fmt: skip
"""What functions give at most: no sample goes beyond. A Clip has its own bounds."""
CARRIES = MOVEMENT_OPS | {"AveragePool", "Concat", "Gather", "GlobalAveragePool", "GlobalMaxPool"}
"""Ops that give nothing beyond what they are given."""
WIDE = 1 << 16  # integers of an encoding that has some to spare
HEADROOM = 1.5
"""How many times as far as the extremes seen such an encoding reaches: half a bit, and the next sample is not clipped."""


def group_encodings(bundle: ModelBundle, plan: Plan, statistics: Statistics) -> dict[str, Encoding]:
    """Encodings by group name, each from the merged histograms of all the group's tensors.

    Raises:
        InputError: calibration saw no tensor of a group, or only extremes where an observer needs all values.
    """
    members: dict[str, list[tuple[str, TensorPlan]]] = {}
    for component in plan:
        for tensor in component.tensors:
            if tensor.quantized and tensor.group:
                members.setdefault(tensor.group, []).append((component.component, tensor))
    made = {c.component: {str(v.name): v for n in bundle[c.component].graph.graph for v in n.outputs} for c in plan}
    return {group: _encoding(group, tensors, bundle, statistics, made) for group, tensors in members.items()}


def _encoding(
    group: str,
    members: list[tuple[str, TensorPlan]],
    bundle: ModelBundle,
    statistics: Statistics,
    made: Mapping[str, Mapping[str, ir.Value]],
) -> Encoding:
    leader = next(t for _, t in members if t.kind is TensorKind.ACTIVATION)
    for algorithm in ("fixed", "range"):
        given = next((t.fixed for _, t in members if t.algorithm == algorithm), None)
        if given is None:
            continue
        if algorithm == "range":
            return encoding_for_range(*given, leader.dtype, symmetric=leader.symmetric)
        scale, zero_point = given
        return Encoding(leader.dtype, np.array(scale, np.float32), np.array(zero_point, np.int32))
    merged = Histogram()
    for component, tensor in members:
        key = f"{component}/{tensor.tensor}"
        if tensor.kind is TensorKind.CONSTANT:
            value = bundle[component].graph.graph.initializers[tensor.tensor]
            merged.update(np.asarray(constant(value), np.float32))
        elif key in statistics.histograms:
            merged.merge(statistics.histograms[key])
    if not merged.seen:
        raise InputError(
            "calibration saw no values of it",
            where=f"tensor {group}",
            fix="calibrate with samples that run every component, and with this bundle's graphs",
        )
    if leader.algorithm != EXTREMES and not merged.total:
        raise InputError(
            f"calibration counted none of its values, which {leader.algorithm} needs", where=f"tensor {group}",
            fix="calibrate with the selection of this plan, or of everything",
        )  # fmt: skip
    first, last = INTEGER_RANGES[leader.dtype]
    low, high = make_observer(leader.algorithm, leader.options).range(merged, last - first + 1, leader.symmetric)
    if leader.algorithm == EXTREMES and last - first + 1 >= WIDE:
        possible = [possible_range(made[component].get(tensor.tensor)) for component, tensor in members]
        low = max(HEADROOM * low, min(low, *(least for least, _ in possible)))
        high = min(HEADROOM * high, max(high, *(most for _, most in possible)))
    if len(members) == 1:
        least, most = useful_range(made[members[0][0]].get(leader.tensor))
        low, high = max(low, least), min(high, most)
    return encoding_for_range(low, high, leader.dtype, symmetric=leader.symmetric)


def possible_range(value: ir.Value | None) -> tuple[float, float]:
    """What a value can be at all: behind a Clip to 0 … 6 nothing is larger. Unknown: −∞ … ∞."""
    node = None if value is None else value.producer()
    if node is None:
        return -math.inf, math.inf
    if node.op_type in CARRIES:
        given = [possible_range(v) for v in (node.inputs if node.op_type == "Concat" else node.inputs[:1])]
        return min(low for low, _ in given), max(high for _, high in given)
    if node.op_type == "Clip":
        ends = [None if v is None else constant(v) for v in (*node.inputs, None, None)[1:3]]
        low, high = (
            infinite if end is None else float(end) for end, infinite in zip(ends, (-math.inf, math.inf), strict=True)
        )
        return low, high
    return GIVES.get(node.op_type, (-math.inf, math.inf))


def useful_range(value: ir.Value | None) -> tuple[float, float]:
    """Beyond it nothing that reads a value tells one number from another: −3 is as good as −30 before a hard swish."""
    if value is None or value.is_graph_output() or not value.uses():
        return -math.inf, math.inf
    ranges = [_flat_beyond(node) for node, _ in value.uses()]
    return min(low for low, _ in ranges), max(high for _, high in ranges)


def _flat_beyond(node: ir.Node) -> tuple[float, float]:
    if node.op_type == "HardSigmoid":
        slope, middle = node.attributes.get_float("alpha", 0.2) or 0.2, node.attributes.get_float("beta", 0.5) or 0.0
        ends = sorted(((0.0 - middle) / slope, (1.0 - middle) / slope))
        return ends[0], ends[1]
    return FLAT_BEYOND.get(node.op_type, (-math.inf, math.inf))
