"""Where the error comes from: a float graph and its pivot side by side, tensor by tensor."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from pocketport.calibration.capture import MOVEMENT_OPS
from pocketport.calibration.metrics import EXACT_DB, decibels
from pocketport.compress.cache.integer_cache import EXACT
from pocketport.compress.executors.ort_executor import OrtExecutor
from pocketport.compress.graph import clone_graph
from pocketport.compress.structure import is_float
from pocketport.errors import UsageError


@dataclass(frozen=True)
class TensorComparison:
    """One tensor of both graphs.

    Attributes:
        tensor: its name in the float graph.
        node: the node that makes it.
        op: that node's op type.
        cumulative_db: SQNR with all quantization before it, its own rounding included.
        local_db: SQNR of this node alone: it reads the float graph's tensors, rounded as the pivot rounds them, with
            the pivot's weights; the rounding of its result counts where that is read.
    """

    tensor: str
    node: str
    op: str
    cumulative_db: float
    local_db: float


def compare_graphs(
    reference: ir.Model, pivot: ir.Model, feeds: Iterable[Mapping[str, NDArray[Any]]]
) -> list[TensorComparison]:
    """Run both graphs on the same feeds.

    Args:
        reference: the float graph.
        pivot: what `apply_plan` made of it.
        feeds: inputs by name, one mapping a sample.

    Returns:
        Every float tensor that a computing node of `reference` makes, in graph order, over all samples. SQNR as in
        `calibration.metrics.sqnr_db`, held within ±EXACT_DB.

    Raises:
        UsageError: no feeds, or the graphs have no tensor in common.
    """
    nodes = {
        v.name or "": node
        for node in reference.graph if node.op_type not in MOVEMENT_OPS
        for v in node.outputs if is_float(v)
    }  # fmt: skip
    produced = [v.name or "" for node in pivot.graph for v in node.outputs]
    made = {_raw_name(name): name for name in produced}
    made |= {name.removesuffix(EXACT): name for name in produced if name.endswith(EXACT)}
    names = [name for name in nodes if name in made]
    twins = {v.name or "" for node in reference.graph for v in node.outputs if is_float(v) and v.name in made}
    if not names:
        raise UsageError(
            "they have no tensor in common", where="compare", fix="compare a float graph with its own pivot"
        )
    restored = {v.name for node in pivot.graph for v in node.outputs}
    final = {name: f"{name}/dq" if f"{name}/dq" in restored else name for name in names}
    floats = _with_outputs(reference, sorted(twins))
    cumulative = _with_outputs(pivot, list(final.values()))
    local = _isolated(pivot, {name: made[name] for name in sorted(twins)})
    sums = {name: np.zeros(3) for name in names}
    samples = 0
    for values in feeds:
        samples += 1
        wanted = floats.run(values)
        got = cumulative.run(values)
        alone = local.run(
            {k: v for k, v in {**values, **{_twin(n): wanted[n] for n in twins}}.items() if k in local.inputs}
        )
        for name in names:
            r = wanted[name].astype(np.float64)
            sums[name] += [
                _energy(r),
                _energy(r - np.asarray(got[final[name]], np.float64)),
                _energy(r - np.asarray(alone[made[name]], np.float64)),
            ]
    if not samples:
        raise UsageError("there are no feeds", where="compare", fix="give at least one sample")
    return [
        TensorComparison(
            name, nodes[name].name or "", nodes[name].op_type,
            decibels(signal, cumulated, EXACT_DB), decibels(signal, own, EXACT_DB),
        )
        for name, (signal, cumulated, own) in sums.items()
    ]  # fmt: skip


def _raw_name(name: str) -> str:
    """The float graph's name of a value that a node of the pivot makes; a graph output's is given to its DQ."""
    return name.removesuffix("/float")


def _twin(name: str) -> str:
    return f"{name}/twin"


def _with_outputs(graph: ir.Model, names: list[str]) -> OrtExecutor:
    copy = clone_graph(graph)
    values = {v.name: v for node in copy.graph for v in node.outputs}
    copy.graph.outputs[:] = [values[name] for name in names]
    return OrtExecutor(copy)


def _isolated(pivot: ir.Model, made: Mapping[str, str]) -> OrtExecutor:
    """The pivot cut behind every node: what reads a tensor of `made` reads the graph input ``tensor/twin`` instead."""
    copy = clone_graph(pivot)
    values = {v.name: v for node in copy.graph for v in node.outputs}
    for name, raw in made.items():
        value = values[raw]
        twin = ir.Value(name=_twin(name), shape=value.shape, type=value.type)
        copy.graph.inputs.append(twin)
        for node, index in list(value.uses()):
            node.replace_input_with(index, twin)
    copy.graph.outputs[:] = [values[raw] for raw in made.values()]
    return OrtExecutor(copy)


def _energy(values: NDArray[np.float64]) -> float:
    return float(np.square(values).sum())
