"""AdaRound layer by layer (Nagel et al. 2020, arXiv 2004.10568)."""

import torch
from torch import Tensor

from pocketport.compress.algorithms.affine_grid import Grid
from pocketport.compress.reconstruction.layer import Layer
from pocketport.compress.reconstruction.options import AdaRound
from pocketport.compress.reconstruction.soft_rounding import Schedule, SoftRounding

SEED = 0


def adaround(layer: Layer, options: AdaRound) -> tuple[Tensor, Grid]:
    """Round every weight up or down so that the layer errs least behind its activation function.

    The asymmetric objective of the paper's section 3.3, ‖f(Wx + b) − f(Ŵx̂ + b)‖², where x̂ has passed the rounded layers.
    The layer's own bias takes the mean of Wx − Ŵx̂, in every step and afterwards. Where the nearest integers
    err less in the end, on all rows, they stay.

    Returns:
        Integers [N, K] as float32, and their grid, which is the layer's own.
    """
    width = layer.weight.shape[1] // layer.grid.scale.shape[1]
    scale, zero = (v.repeat_interleave(width, 1) for v in (layer.grid.scale, layer.grid.zero))
    soft = SoftRounding(layer.weight, scale, zero, (layer.grid.low, layer.grid.high))
    nearest = layer.grid.nearest(layer.weight)
    everything = torch.arange(len(layer.rows), device=layer.rows.device)
    with torch.no_grad():
        start = float(_error(layer, layer.grid.dequantized(nearest), everything)) / len(everything)
    if start == 0.0:
        return nearest, layer.grid
    schedule = Schedule([soft], options.iterations)
    generator = torch.Generator().manual_seed(SEED)
    for _ in range(options.iterations):
        drawn = torch.randint(len(layer.rows), (options.rows,), generator=generator).to(layer.rows.device)
        (_error(layer, soft.weight(), drawn) / (start * options.rows)).backward()  # type: ignore[no-untyped-call]
        schedule.step()
    integers = soft.integers()
    with torch.no_grad():
        found = float(_error(layer, layer.grid.dequantized(integers), everything)) / len(everything)
    return (integers if found < start else nearest), layer.grid


def _error(layer: Layer, weight: Tensor, places: Tensor) -> Tensor:
    """Σ of squared errors behind the activation function over some of the rows."""
    wanted = layer.outputs[places]
    found = layer.product(weight, layer.rows[places])
    if layer.bias is not None:
        found = found - found.mean(0) + wanted.mean(0) + layer.bias
        wanted = wanted + layer.bias
    return (layer.function(found) - layer.function(wanted)).square().sum()
