"""A layer as the product of a matrix with rows that were drawn from its input on samples."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import Tensor

from pocketport.calibration.encodings import Encoding
from pocketport.compress.algorithms.affine_grid import Grid
from pocketport.compress.executors.torch_executor import run_nodes
from pocketport.compress.executors.torch_spatial import ints, padded
from pocketport.compress.reconstruction.chains import Chains
from pocketport.compress.reconstruction.segments import Segment
from pocketport.compress.structure import weight_operand

T = TypeVar("T", bound=np.generic)

VALUES = 1 << 24  # of the rows of one layer: 64 MB
SPREAD = 7919  # positions of one sample are drawn beside those of the one before


@dataclass(frozen=True)
class Layer:
    """What there is to round a layer's weight by.

    Attributes:
        weight: float32 [N, K], of the float model.
        grid: of its integers.
        rows: float32 [P, G, K], inputs in the rounded chain; the outputs of a grouped convolution are G runs of N / G.
        outputs: float32 [P, N], what the float chain makes of the same places, without the bias.
        bias: float32 [N], of the float model; None where the layer has none of its own, so that its mean can't be moved.
        function: the activation function behind the layer.
        least: float32 [N], scales may not be smaller (an int32 bias must fit s_x · s_w), or None.
        shared: one scale serves the whole matrix (and stands in its grid N times).
    """

    weight: Tensor
    grid: Grid
    rows: Tensor
    outputs: Tensor
    bias: Tensor | None
    function: Callable[[Tensor], Tensor]
    least: Tensor | None = None
    shared: bool = False

    @property
    def groups(self) -> int:
        """G of a grouped convolution."""
        return self.rows.shape[1]

    def product(self, weight: Tensor, rows: Tensor | None = None) -> Tensor:
        """What a weight [N, K] makes of rows, by default all of them: [P, N]."""
        return product(self.rows if rows is None else rows, weight)

    def grouped(self, matrix: Tensor) -> Tensor:
        """A matrix [N, K] as [G, N / G, K]."""
        return matrix.reshape(self.groups, -1, matrix.shape[1])

    def moments(self) -> tuple[Tensor, Tensor]:
        """Σ x̂ᵀx̂ [G, K, K] and Σ (y − Wx̂)ᵀx̂ [G, N / G, K], float64; about the means where a bias takes these."""
        rows = self.rows
        missing = self.outputs - self.product(self.weight)
        if self.bias is not None:
            rows, missing = rows - rows.mean(0), missing - missing.mean(0)
        across = rows.transpose(0, 1)  # [G, P, K]
        hessian = across.transpose(1, 2) @ across
        drift = missing.reshape(len(missing), self.groups, -1).permute(1, 2, 0) @ across
        return hessian.double(), drift.double()

    def corrected_bias(self, weight: Tensor) -> Tensor | None:
        """The bias that gives the float chain's mean output with a rounded weight, [N]."""
        return None if self.bias is None else self.bias + (self.outputs - self.product(weight)).mean(0)


def product(rows: Tensor, weight: Tensor) -> Tensor:
    """[P, G, K] rows times a weight [N, K] whose rows are G runs: [P, N]."""
    groups = rows.shape[1]
    if groups == 1:
        return rows[:, 0] @ weight.T
    each = weight.reshape(groups, -1, weight.shape[1])
    return torch.einsum("pgk,gnk->pgn", rows, each).reshape(len(rows), -1)


def as_matrix(values: NDArray[T], channel_axis: int) -> NDArray[T]:
    """A weight, or what it has of each value, with its channels first: [N, K]."""
    moved = np.moveaxis(values, channel_axis, 0)
    return np.ascontiguousarray(moved).reshape(len(moved), -1)


def from_matrix(matrix: NDArray[T], shape: tuple[int, ...], channel_axis: int) -> NDArray[T]:
    """Back from `as_matrix` to a tensor of this shape."""
    moved = (shape[channel_axis], *shape[:channel_axis], *shape[channel_axis + 1 :])
    return np.moveaxis(matrix.reshape(moved), 0, channel_axis)


def grid_of(encoding: Encoding, shape: tuple[int, ...], channel_axis: int, device: torch.device) -> Grid:
    """The grid of a weight of this shape."""

    def spread(values: NDArray[Any]) -> Tensor:
        each = as_matrix(values, channel_axis) if encoding.block else values.reshape(-1, 1)
        rows = np.broadcast_to(each, (shape[channel_axis], each.shape[1]))
        return torch.from_numpy(np.array(rows, np.float32)).to(device)

    return Grid(spread(encoding.scale), spread(encoding.zero_point), *encoding.bounds)


@torch.no_grad()
def drawn_layer(
    chains: Chains, segment: Segment, weight: NDArray[np.float32], encoding: Encoding,
    bias: NDArray[np.float32] | None, least: NDArray[np.float64] | None,
) -> Layer:  # fmt: skip
    """The problem of the layer that a segment begins with, from rows of all samples.

    Args:
        chains: as far as the layer's input.
        segment: the layer, and the activation functions behind it.
        weight: in the graph's layout.
        encoding: where its grid starts from.
        bias: [N], None where it can't be changed.
        least: [N], see `Layer`.
    """
    node, device = segment.nodes[0], chains.device
    operand = weight_operand(node)
    assert operand is not None and operand.activation is not None
    name = operand.activation.name or ""
    axis = operand.channel_axis
    matrix = torch.from_numpy(np.asarray(as_matrix(weight, axis), np.float32)).to(device)
    most = VALUES // chains.count
    rows, outputs = [], []
    for sample in range(chains.count):
        own = _drawn(node, chains.get(name, sample, exact=False), weight.shape, chains.real[sample], most, sample)
        exact = _drawn(node, chains.get(name, sample, exact=True), weight.shape, chains.real[sample], most, sample)
        rows.append(own)
        outputs.append(product(exact, matrix))

    def function(x: Tensor) -> Tensor:
        values = {node.outputs[0].name or "": x}
        run_nodes(segment.nodes[1:], values, chains.exact_constants, {})
        return values[segment.nodes[-1].outputs[0].name or ""]

    return Layer(
        matrix, grid_of(encoding, weight.shape, axis, device), torch.cat(rows), torch.cat(outputs),
        None if bias is None else torch.from_numpy(bias).to(device), function,
        None if least is None else torch.from_numpy(least.astype(np.float32)).to(device), encoding.axis is None,
    )  # fmt: skip


def _drawn(
    node: ir.Node, x: Tensor, shape: tuple[int, ...], real: NDArray[np.bool_] | None, most: int, sample: int
) -> Tensor:
    """Rows [n, G, K] of one sample's input, of at most `most` values, drawn evenly over its positions."""
    if node.op_type != "Conv":
        rows = x if real is None or len(x) != len(real) else x[torch.from_numpy(real).to(x.device)]
        rows = rows.reshape(-1, 1, x.shape[-1])
        return rows[_places(len(rows), most // x.shape[-1], sample, x.device)]
    kernel, groups = shape[2:], node.attributes.get_int("group", 1) or 1
    ones = (1,) * len(kernel)
    windows = padded(node, x)
    for axis, (size, stride, dilation) in enumerate(
        zip(kernel, ints(node, "strides", ones), ints(node, "dilations", ones), strict=True)
    ):
        windows = windows.unfold(2 + axis, dilation * (size - 1) + 1, stride)[..., ::dilation]
    positions = (windows.shape[0], *windows.shape[2 : 2 + len(kernel)])
    columns = x.shape[1] * int(np.prod(kernel))
    places = _places(int(np.prod(positions)), most // columns, sample, x.device)
    # A view of every window; only those that are drawn are copied.
    chosen = windows.movedim(1, 1 + len(kernel))[torch.unravel_index(places, positions)]
    return chosen.reshape(len(places), groups, -1)


def _places(count: int, most: int, sample: int, device: torch.device) -> Tensor:
    chosen = min(count, max(1, most))
    places = np.arange(chosen) * count // chosen
    return torch.from_numpy((places + sample * SPREAD) % count if chosen < count else places).to(device)
