"""Single layers with inputs in float and rounded, as a walk meets them."""

import numpy as np
import onnx_ir as ir
import torch

from pocketport.calibration.encodings import Encoding
from pocketport.compress.algorithms.affine_grid import Grid
from pocketport.compress.blockwise.activations import Activations
from pocketport.compress.builder import GraphBuilder
from pocketport.compress.reconstruction.chains import Chains, PivotConstants
from pocketport.compress.reconstruction.layer import Layer, drawn_layer
from pocketport.compress.reconstruction.segments import layer_segments

CPU = torch.device("cpu")


def graph_of(
    op: str, x: tuple[int, ...], weight: tuple[int, ...], *, relu: bool = False, **attributes: object
) -> ir.Model:
    g = GraphBuilder("main")
    rng = np.random.default_rng(0)
    operands = [g.input("x", x), g.weight("weight", rng.standard_normal(weight).astype(np.float32))]
    if op != "MatMul":
        outputs = weight[0] if op == "Conv" or attributes.get("transB") else weight[1]
        operands.append(g.weight("bias", rng.standard_normal(outputs).astype(np.float32)))
    y = g.node(op, operands, "layer", **attributes)
    g.output(g.node("Relu", [y], "relu") if relu else y)
    return g.finish()


def layer_of(
    graph: ir.Model, samples: list[np.ndarray], encoding: Encoding, x: Encoding | None, folder: object
) -> Layer:
    """The problem of a graph's only layer, its input rounded as `x` says."""
    node = next(iter(graph.graph))
    bias = graph.graph.initializers.get("bias")
    encodings = {} if x is None else {"x": x}
    with Activations(folder / "spill", 1 << 20) as activations:  # type: ignore[operator]
        constants = PivotConstants(graph, encodings, CPU)
        chains = Chains(graph, constants, encodings, ({"x": s} for s in samples), activations, CPU)
        segment = next(s for s in layer_segments(graph, [node]) if s.layers)
        weight = graph.graph.initializers["weight"].const_value.numpy()  # type: ignore[union-attr]
        own = None if bias is None else bias.const_value.numpy()  # type: ignore[union-attr]
        return drawn_layer(chains, segment, weight, encoding, own, None)


def random_layer(
    outputs: int, columns: int, *, groups: int = 1, bits: int = 3, blocks: int = 1, bias: bool = False, relu: bool = False,
    rows: int = 300, seed: int = 0, spread: float = 20.0,
) -> Layer:  # fmt: skip
    """Correlated inputs with a mean, more so the greater `spread` is, and a grid of each row's (or block's) extremes."""
    rng = np.random.default_rng(seed)
    mixing = rng.standard_normal((groups, columns, columns)) * np.geomspace(2, 2 / spread, columns)
    exact = np.einsum("pgk,gkl->pgl", rng.standard_normal((rows, groups, columns)), mixing) + 1
    weight = rng.standard_normal((outputs, columns)).astype(np.float32)
    high = 2 ** (bits - 1) - 1
    scale = np.abs(weight.reshape(outputs, blocks, -1)).max(-1) / high
    grid = Grid(torch.from_numpy(scale.astype(np.float32)), torch.zeros(outputs, blocks), -high - 1, high)
    made = np.einsum("pgk,gnk->pgn", exact, weight.reshape(groups, -1, columns)).reshape(rows, -1)
    met = np.rint(exact * 8) / 8
    return Layer(
        torch.from_numpy(weight), grid, torch.from_numpy(met.astype(np.float32)), torch.from_numpy(made.astype(np.float32)),
        torch.zeros(outputs) if bias else None, torch.relu if relu else lambda x: x,
    )  # fmt: skip


def error(layer: Layer, weight: torch.Tensor) -> torch.Tensor:
    """Σ over rows of squared output errors, by output [N]; about their mean where a bias takes that."""
    difference = layer.product(weight).double() - layer.outputs.double()
    return (difference - difference.mean(0) * (layer.bias is not None)).square().sum(0)
