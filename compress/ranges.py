"""From what calibration saw of activations to one encoding for every group of them."""

import numpy as np

from pocketport.calibration.encodings import INTEGER_RANGES, Encoding, encoding_for_range
from pocketport.calibration.observers import EXTREMES, Histogram, make_observer
from pocketport.calibration.statistics import Statistics
from pocketport.compress.bundle import ModelBundle
from pocketport.compress.graph import constant
from pocketport.compress.plan import Plan, TensorKind, TensorPlan
from pocketport.errors import InputError


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
    return {group: _encoding(group, tensors, bundle, statistics) for group, tensors in members.items()}


def _encoding(
    group: str, members: list[tuple[str, TensorPlan]], bundle: ModelBundle, statistics: Statistics
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
    return encoding_for_range(low, high, leader.dtype, symmetric=leader.symmetric)
