"""A matrix in one of ggml's block formats made better under its whole Hessian, block of columns by block.

Each sweep goes once over all blocks. In each, steps and units of the scales are chosen anew for the codes as they are, then
the codes for the scales, column by column (QuantEase, Behdin et al. 2023, arXiv 2309.01885, algorithm 1); both beside
everything else as it is, so that tr((Ŵ − W) H (Ŵ − W)ᵀ), the error of the layer's output, never grows.
"""

import torch
from torch import Tensor

from pocketport.compress.algorithms.column_rounding import INNER, descended_columns
from pocketport.compress.ggml.blocks import BlockForm
from pocketport.compress.ggml.matrix import BlockGrid, joined, rounding
from pocketport.compress.ggml.scales import BlockScales, half, interleaved, over

RUN_ELEMENTS = 1 << 21  # of the largest arrays: rows do not depend on one another
ROUNDS = 2  # of steps and units in turn
RIDGE = 1e-6  # of a scale's own curvature; parts whose levels are all 0 leave their scale undetermined


def refined(weight: Tensor, hessian: Tensor, codes: Tensor, grid: BlockGrid, sweeps: int) -> tuple[Tensor, BlockGrid]:
    """Alternate scales and codes.

    Args:
        weight: float32 [N, K], what the codes should stand for.
        hessian: float32 [K, K], symmetric, positive definite.
        codes: uint8 [N, K].
        grid: of the codes.
        sweeps: how often.
    """
    form = grid.form
    rows = max(1, RUN_ELEMENTS // max(weight.shape[1], form.block * form.block // form.part))
    done: list[tuple[Tensor, BlockGrid]] = []
    for start in range(0, len(weight), rows):
        part = slice(start, start + rows)
        w, q, own = weight[part], codes[part], grid.rows(part)
        for _ in range(sweeps):
            q, own = _swept(w, hessian, q, own)
        done.append((q, own))
    return torch.cat([q for q, _ in done]), joined([own for _, own in done])


def _swept(weight: Tensor, hessian: Tensor, codes: Tensor, grid: BlockGrid) -> tuple[Tensor, BlockGrid]:
    """One sweep over all blocks of columns."""
    form, (n, k) = grid.form, weight.shape
    codes = codes.T.contiguous()  # so that a column is
    gradient = hessian @ (grid.dequantized(codes.T) - weight).T
    found: list[BlockScales] = []
    for index in range(k // form.block):
        part = slice(index * form.block, (index + 1) * form.block)
        own, slope = hessian[part, part], gradient[part]
        before = grid.scales.rows(slice(index, None, k // form.block))
        after = refitted(own, slope, form.levels.of(codes[part]), before, form)
        change = (form.dequantized(codes[part].T, after) - form.dequantized(codes[part].T, before)).T
        change = change + _descended(own, slope.addmm(own, change), codes[part], after, form)
        gradient[part.stop :].addmm_(hessian[part.stop :, part], change)
        found.append(after)
    return codes.T.contiguous(), BlockGrid(form, interleaved(found), n)


def _descended(hessian: Tensor, gradient: Tensor, codes: Tensor, scales: BlockScales, form: BlockForm) -> Tensor:
    """New codes of one block of columns [B, N], in place; returns the change of what they stand for."""
    before = form.dequantized(codes.T, scales).T
    now = before.clone(memory_format=torch.contiguous_format)
    scale, offset = (None if v is None else v.T.contiguous() for v in (scales.scale, scales.offset))
    assert scale is not None
    rounded = rounding(form.levels, scale, offset, torch.arange(form.block, device=codes.device) // form.part)
    for start in range(0, form.block, INNER):
        part = slice(start, start + INNER)
        change = descended_columns(
            hessian[None, part, part], now[None, part], gradient[None, part], codes[None, part], start, rounded
        )[0]
        now[part] += change
        gradient[part.stop :].addmm_(hessian[part.stop :, part], change)
    return now - before


def refitted(hessian: Tensor, gradient: Tensor, levels: Tensor, scales: BlockScales, form: BlockForm) -> BlockScales:
    """Steps and units anew for the codes of a block of columns, where the error falls.

    Args:
        hessian: float32 [B, B], of these columns.
        gradient: float32 [B, N], of half the error by each weight.
        levels: float32 [B, N], of the codes.
        scales: of the N blocks.
        form: their format.
    """
    curvature, slope = _quadratic(hessian, gradient, levels, form)
    found, residual = scales, -slope
    for _ in range(ROUNDS):
        found, residual = _with_units(*_with_steps(found, residual, curvature, form), curvature)
    change = (found.units[..., None] * found.steps - scales.units[..., None] * scales.steps).flatten(1)
    better = torch.linalg.vecdot(change, slope + _product(curvature, change) / 2) < 0
    units = torch.where(better[:, None], found.units, scales.units)
    return BlockScales(units, torch.where(better[:, None, None], found.steps, scales.steps))


def _quadratic(hessian: Tensor, gradient: Tensor, levels: Tensor, form: BlockForm) -> tuple[Tensor, Tensor]:
    """Second and first derivatives of half the error by the scales, and behind them the offsets, of each of N blocks.

    [N, P, P] and [N, P], P the number of scales and offsets.
    """
    parts, n = form.block // form.part, levels.shape[1]
    own, slopes = levels.reshape(parts, form.part, n), gradient.reshape(parts, form.part, n)
    products = hessian.reshape(-1, parts, form.part).transpose(0, 1) @ own  # of all columns with each part's levels
    products = products.reshape(parts, parts, form.part, n)
    curvature, slope = torch.linalg.vecdot(products, own, dim=2), torch.linalg.vecdot(slopes, own, dim=1)
    if len(form.steps) > 1:
        mixed = -products.sum(2)
        sums = hessian.reshape(parts, form.part, parts, form.part).sum((1, 3))[..., None].expand(-1, -1, n)
        upper, lower = torch.cat([curvature, mixed], 1), torch.cat([mixed.transpose(0, 1), sums], 1)
        curvature, slope = torch.cat([upper, lower]), torch.cat([slope, -slopes.sum(1)])
    return curvature.permute(2, 0, 1).contiguous(), slope.T.contiguous()


def _with_steps(
    scales: BlockScales, residual: Tensor, curvature: Tensor, form: BlockForm
) -> tuple[BlockScales, Tensor]:
    """Each step in turn becomes the one that is best beside all others; with what is left of the residual [N, P]."""
    steps, parts = scales.steps.flatten(1).clone(), scales.steps.shape[2]
    for index in range(steps.shape[1]):
        kind = index // parts
        low, high = form.steps[kind]
        if low == high:
            continue
        unit, before = scales.units[:, kind], steps[:, index].clone()
        wish = before + over(residual[:, index], curvature[:, index, index] * unit)
        steps[:, index] = wish.round_().clamp_(low, high)
        change = (steps[:, index] - before) * unit
        residual = residual - curvature[:, index] * change[:, None]
    return BlockScales(scales.units, steps.reshape(scales.steps.shape)), residual


def _with_units(scales: BlockScales, residual: Tensor, curvature: Tensor) -> tuple[BlockScales, Tensor]:
    """The units that fit the steps best, of the same signs; with what is left of the residual [N, P]."""
    n, kinds, parts = scales.steps.shape
    shares = torch.zeros(n, kinds, kinds, parts, device=residual.device)
    shares.diagonal(dim1=1, dim2=2).copy_(scales.steps.transpose(1, 2))
    shares = shares.flatten(2)
    square = shares @ curvature @ shares.mT
    diagonal = square.diagonal(dim1=1, dim2=2)
    diagonal += RIDGE * diagonal + torch.finfo(torch.float32).tiny
    units = half(scales.units + torch.linalg.solve(square, _product(shares, residual)))
    units = torch.where(torch.isfinite(units) & (units * scales.units > 0), units, scales.units)
    change = _product(shares.mT, units - scales.units)
    return BlockScales(units, scales.steps), residual - _product(curvature, change)


def _product(matrices: Tensor, vectors: Tensor) -> Tensor:
    """[N, A, B] times [N, B], [N, A]."""
    return (matrices @ vectors[..., None])[..., 0]
