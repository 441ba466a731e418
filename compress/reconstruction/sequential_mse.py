"""Sequential MSE: scales judged by the output of their layer, behind what is rounded before it."""

from dataclasses import replace

import torch
from torch import Tensor

from pocketport.compress.algorithms.affine_grid import Grid
from pocketport.compress.reconstruction.layer import Layer
from pocketport.compress.reconstruction.options import SequentialMse


@torch.no_grad()
def sequential_mse(layer: Layer, options: SequentialMse) -> tuple[Tensor, Grid]:
    """Of evenly spaced scales for each channel (or block), the one whose nearest integers give the least ‖(W − Ŵ)x̂‖².

    AIMET's algorithm of this name (Qualcomm AI Engine documentation, "Sequential MSE"; the search over a layer's
    scales by its output goes back to Choukroun et al. 2019, arXiv 1902.06822, and Hubara et al. 2021, arXiv 2006.10518).
    x̂ has passed the rounded layers before. Errors come from Σ x̂ᵀx̂, so that a candidate takes no pass over the data; about
    the means where the layer's bias takes these. Blocks of a row are judged each for itself.

    Returns:
        Integers [N, K] as float32, and their grid.
    """
    hessian = layer.moments()[0].float()
    groups, (n, blocks) = layer.groups, layer.grid.scale.shape
    width = layer.weight.shape[1] // blocks
    within = hessian.reshape(groups, blocks, width, blocks, width).diagonal(dim1=1, dim2=3)  # [G, b, b, B]
    best = torch.full((n, blocks), torch.inf, device=hessian.device)
    chosen = layer.grid.scale
    for step in range(options.candidates, 0, -1):
        scale = layer.grid.scale * (step / options.candidates)
        if layer.least is not None:
            scale = torch.maximum(scale, layer.least[:, None])
        grid = replace(layer.grid, scale=scale)
        difference = grid.dequantized(grid.nearest(layer.weight)) - layer.weight
        parts = difference.reshape(groups, n // groups, blocks, width)
        error = (torch.einsum("gnbk,gklb->gnbl", parts, within) * parts).sum(-1).reshape(n, blocks)
        if layer.shared:
            error = error.sum(0, keepdim=True).expand(n, blocks)
        better = error < best
        best, chosen = torch.where(better, error, best), torch.where(better, scale, chosen)
    grid = replace(layer.grid, scale=chosen)
    return grid.nearest(layer.weight), grid
