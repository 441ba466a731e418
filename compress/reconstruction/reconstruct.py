"""Rounding on samples: a pivot's weights once more, each behind those that are rounded before it."""

import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from torch import Tensor

from pocketport.calibration.encodings import Encoding, EncodingTable
from pocketport.compress.algorithms.affine_grid import Grid
from pocketport.compress.blockwise.activations import SPILL_NAME, Activations
from pocketport.compress.bundle import ModelBundle
from pocketport.compress.executors.ort_executor import Arrays, Samples
from pocketport.compress.planning.plan import ComponentPlan, Plan
from pocketport.compress.reconstruction.adaround import adaround
from pocketport.compress.reconstruction.brecq import Block
from pocketport.compress.reconstruction.chains import Chains, PivotConstants
from pocketport.compress.reconstruction.gptq import sequential_gptq
from pocketport.compress.reconstruction.layer import Layer, drawn_layer, from_matrix
from pocketport.compress.reconstruction.options import Brecq, read_options
from pocketport.compress.reconstruction.pivot import PivotWeights, planned_layers
from pocketport.compress.reconstruction.segments import Segment, block_segments, layer_segments
from pocketport.compress.reconstruction.sequential_mse import sequential_mse
from pocketport.compress.structure import weight_operand
from pocketport.compress.torch_device import best_device, one_thread

BUDGET = 512 << 20  # of activations that are kept in memory; the rest is in a file
BLOCKWISE = "brecq"
BLOCKS_START = {"propagation": 0.5, "sweeps": 2}  # of gptq, from whose integers blocks go on
LAYERWISE: Mapping[str, Callable[[Layer, Any], tuple[Tensor, Grid]]] = {
    "adaround": adaround, "gptq": sequential_gptq, "sequential_mse": sequential_mse,
}  # fmt: skip


def reconstruct(
    bundle: ModelBundle, plan: Plan, pivots: Mapping[str, ir.Model], table: EncodingTable, samples: Samples
) -> None:
    """Round all weights whose algorithm wants samples, layer by layer and then block by block.

    A weight that several components have alike is rounded in the first of them. The same samples give the same bytes,
    whatever the number of threads: sums are taken by one of them.

    Args:
        bundle: the float graphs that the pivots were made from.
        plan: of the pivots.
        pivots: by component, changed in place.
        table: encodings by ``component/tensor``, changed in place.
        samples: of calibration.

    Raises:
        UsageError: there is no sample of a component.
        InputError: an op can't be run in torch.
        VerificationError: a Hessian is not positive definite even when damped.
    """
    rounded: dict[str, PivotWeights] = {}
    with (
        one_thread(), warnings.catch_warnings(),
        tempfile.TemporaryDirectory(prefix="pocketport-reconstruction-") as folder,
    ):  # fmt: skip
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")  # they are only read
        for component in plan:
            chosen = {t.tensor: t for t in component.tensors if t.on_samples}
            if not chosen:
                continue
            graph = bundle[component.component].graph
            weights = PivotWeights(component, graph, pivots[component.component], table)
            layers = [n for n in planned_layers(graph, chosen) if not _taken_over(n, weights, rounded.values())]
            rounded[component.component] = weights

            def feeds(component: ComponentPlan = component) -> Iterator[Arrays]:
                return (arrays for name, arrays in samples() if name == component.component)

            blocks = [n for n in layers if weights.plan_of(n).algorithm == BLOCKWISE]
            if layers:
                _walk(weights, layer_segments(graph, layers), _round_layer, feeds(), Path(folder))
            if blocks:
                _walk(weights, block_segments(graph, blocks), _reconstruct_block, feeds(), Path(folder))


def _walk(
    weights: PivotWeights, segments: Iterable[Segment], rounds: Callable[[Chains, Segment, PivotWeights], None],
    feeds: Iterable[Arrays], folder: Path,
) -> None:  # fmt: skip
    """All samples through a component, whose weights are rounded on the way."""
    device = best_device()
    constants = PivotConstants(weights.pivot, weights.encodings, device)
    with Activations(folder / SPILL_NAME, BUDGET) as activations:
        chains = Chains(weights.float_graph, constants, weights.encodings, feeds, activations, device)
        for segment in segments:
            chains.advance_exact(segment)
            if segment.layers:
                rounds(chains, segment, weights)
            chains.advance(segment)


def _reconstruct_block(chains: Chains, segment: Segment, weights: PivotWeights) -> None:
    """All layers of a segment together."""
    plan = weights.plan_of(segment.layers[0])
    options = read_options(plan.algorithm, plan.options)
    assert isinstance(options, Brecq)
    Block(chains, segment, weights).reconstruct(options)


def _round_layer(chains: Chains, segment: Segment, weights: PivotWeights) -> None:
    """The one layer of a segment, and its bias; as blocks start from it, where it is part of one."""
    node = segment.layers[0]
    plan = weights.plan_of(node)
    blockwise = plan.algorithm == BLOCKWISE
    algorithm, options = ("gptq", BLOCKS_START) if blockwise else (plan.algorithm, plan.options)
    weight, encoding = weights.weight(node), weights.encoding(node)
    layer = drawn_layer(chains, segment, weight, encoding, weights.bias(node), weights.least_scale(node))
    integers, grid = LAYERWISE[algorithm](layer, read_options(algorithm, options))
    operand = weight_operand(node)
    assert operand is not None
    found = from_matrix(integers.cpu().numpy().astype(np.int32), weight.shape, operand.channel_axis)
    weights.write_weight(node, found, _with_scale(encoding, grid, operand.channel_axis))
    bias = layer.corrected_bias(grid.dequantized(integers))
    weights.write_bias(node, None if bias is None else bias.cpu().numpy())


def _with_scale(encoding: Encoding, grid: Grid, channel_axis: int) -> Encoding:
    scale = grid.scale.cpu().numpy()
    if encoding.block:
        return replace(encoding, scale=from_matrix(scale, encoding.scale.shape, channel_axis))
    return replace(encoding, scale=scale[0, 0].reshape(()) if encoding.axis is None else scale[:, 0].copy())


def _taken_over(node: ir.Node, weights: PivotWeights, others: Iterable[PivotWeights]) -> bool:
    """Whether another component has rounded the same weight already; its integers are written here too then."""
    plan = weights.plan_of(node)
    for other in others:
        twin = next((n for n in other.layers_named(plan.tensor) if other.plan_of(n).written_like(plan)), None)
        if twin is not None and np.array_equal(other.weight(twin), weights.weight(node)):
            weights.write_weight(node, other.integers(twin), other.encoding(twin))
            weights.write_bias(node, None)
            return True
    return False
