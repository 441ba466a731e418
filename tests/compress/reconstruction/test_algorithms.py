"""Rounding on samples against brute force, direct loops over the data, and the published formulas written out."""

import sys
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from single_layers import error, random_layer
from torch.nn import functional

from pocketport.compress.algorithms import WeightFormat, WeightProblem
from pocketport.compress.algorithms.base import Grid
from pocketport.compress.algorithms.gptq import gptq
from pocketport.compress.reconstruction.adaround import adaround
from pocketport.compress.reconstruction.gptq import sequential_gptq
from pocketport.compress.reconstruction.layer import Layer
from pocketport.compress.reconstruction.options import AdaRound, SequentialGptq, SequentialMse
from pocketport.compress.reconstruction.sequential_mse import sequential_mse
from pocketport.compress.reconstruction.soft_rounding import SoftRounding


def brute_force(layer: Layer) -> torch.Tensor:
    """Of every row, the least error over all ways to round each weight up or down."""
    scale = layer.grid.scale
    down = torch.floor(layer.weight / scale)
    best = torch.full((len(layer.weight),), torch.inf, dtype=torch.float64)
    for ups in product((0.0, 1.0), repeat=layer.weight.shape[1]):
        weight = (down + torch.tensor(ups)).clamp(layer.grid.low, layer.grid.high) * scale
        best = torch.minimum(best, behind(layer, weight))
    return best


def behind(layer: Layer, weight: torch.Tensor) -> torch.Tensor:
    """The error behind the activation function, by output."""
    found = layer.product(weight).double()
    wanted = layer.outputs.double()
    if layer.bias is not None:
        found = found - found.mean(0) + wanted.mean(0) + layer.bias
        wanted = wanted + layer.bias
    return (layer.function(found) - layer.function(wanted)).square().sum(0)


@pytest.mark.parametrize(("bias", "relu", "groups"), [(False, False, 1), (True, True, 1), (True, False, 4)])
def test_adaround_lies_between_the_nearest_and_the_best_of_all_roundings(bias: bool, relu: bool, groups: int) -> None:
    sums = np.zeros(3)
    for seed in range(3):
        layer = random_layer(4, 8, groups=groups, bias=bias, relu=relu, spread=2, seed=seed)
        integers, grid = adaround(layer, AdaRound(iterations=300, rows=64))
        assert grid is layer.grid and torch.equal(integers, integers.round())
        down = torch.floor(layer.weight / grid.scale)
        assert bool(
            ((integers >= down.clamp(grid.low, grid.high)) & (integers <= (down + 1).clamp(grid.low, grid.high))).all()
        )
        found, nearest = (
            float(behind(layer, grid.dequantized(i)).sum()) for i in (integers, grid.nearest(layer.weight))
        )
        best = float(brute_force(layer).sum())
        assert best * 0.999 <= found <= nearest
        sums += best, found, nearest
    assert sums[1] < sums[0] + 0.8 * (sums[2] - sums[0])


def test_soft_rounding_is_the_papers() -> None:
    rng = np.random.default_rng(0)
    weight = torch.from_numpy(rng.uniform(-4, 4, (5, 7)).astype(np.float32))
    scale, zero = torch.full((5, 1), 0.3), torch.full((5, 1), 2.0)
    soft = SoftRounding(weight, scale, zero, (0, 15))
    inside = (weight / scale + zero > 0) & (weight / scale + zero < 15)
    np.testing.assert_allclose(soft.weight().detach()[inside], weight[inside], atol=1e-5)  # it starts at the weight
    with torch.no_grad():
        soft.logits.copy_(torch.from_numpy(rng.uniform(-4, 4, (5, 7)).astype(np.float32)))
    h = np.clip(1 / (1 + np.exp(-soft.logits.detach().numpy())) * (1.1 + 0.1) - 0.1, 0, 1)
    n = np.clip(np.floor(weight.numpy() / np.float32(0.3)) + h + 2, 0, 15) - 2
    np.testing.assert_allclose(soft.weight().detach(), n * np.float32(0.3), atol=1e-5)
    np.testing.assert_allclose(float(soft.regularizer(5.0)), (1 - np.abs(2 * h - 1) ** 5).sum(), rtol=1e-5)
    assert np.array_equal(soft.integers(), np.clip(np.floor(weight.numpy() / np.float32(0.3)) + (h >= 0.5) + 2, 0, 15))


@pytest.mark.parametrize("shift", [-3, -1, 0, 1, 3])
def test_soft_rounding_may_start_from_other_integers(shift: int) -> None:
    weight = torch.linspace(-1, 1, 11)
    integers = (weight / 0.25).round() + shift
    soft = SoftRounding(weight, torch.tensor(0.25), torch.tensor(0.0), (-8, 7), integers)
    assert torch.equal(soft.integers(), integers) and bool(torch.isfinite(soft.logits).all())


@pytest.mark.parametrize("kind", ["channel", "block", "tensor"])
def test_sequential_mse_is_a_loop_over_candidates_and_data(kind: str) -> None:
    layer = random_layer(6, 8, blocks=2 if kind == "block" else 1, bias=kind == "channel")
    if kind == "tensor":
        one = layer.grid.scale.max().expand(6, 1)
        layer = replace(layer, grid=replace(layer.grid, scale=one), shared=True)
    integers, grid = sequential_mse(layer, SequentialMse(candidates=10))
    groups = layer.grid.scale.shape[1]
    width = 8 // groups
    errors, ratios = [], [(k + 1) / 10 for k in range(10)]
    for ratio in ratios:
        scale = (layer.grid.scale * ratio).repeat_interleave(width, 1)
        rounded = (layer.weight / scale).round().clamp(layer.grid.low, layer.grid.high) * scale
        per_group = []
        for g in range(groups):
            columns = slice(g * width, (g + 1) * width)
            x = layer.rows[:, 0, columns]
            difference = functional.linear(x, rounded[:, columns]) - functional.linear(x, layer.weight[:, columns])
            per_group.append((difference - difference.mean(0) * (layer.bias is not None)).square().sum(0))
        errors.append(
            torch.stack(per_group, 1).sum(0, keepdim=kind == "tensor")
            if kind == "tensor"
            else torch.stack(per_group, 1)
        )
    best = torch.stack(errors).argmin(0)
    wanted = layer.grid.scale * torch.tensor(ratios)[best]
    np.testing.assert_allclose(grid.scale, wanted.expand_as(grid.scale), rtol=1e-6)
    assert torch.equal(integers, grid.nearest(layer.weight))


def test_scales_do_not_fall_below_what_an_int32_bias_needs() -> None:
    layer = random_layer(6, 8)
    layer = replace(layer, least=layer.grid.scale[:, 0] * 0.95)
    for found in (sequential_mse(layer, SequentialMse()), sequential_gptq(layer, SequentialGptq(sweeps=2))):
        assert bool((found[1].scale >= 0.95 * layer.grid.scale * (1 - 1e-6)).all())


@pytest.mark.parametrize("groups", [1, 3])
def test_gptq_of_a_grouped_convolution_is_that_of_each_group(groups: int) -> None:
    layer = random_layer(6, 12, groups=groups, bits=4)
    integers, _ = sequential_gptq(layer, SequentialGptq(damping=0.01))
    for g in range(groups):
        part = slice(g * 6 // groups, (g + 1) * 6 // groups)
        x = layer.rows[:, g].numpy()
        grid = Grid(layer.grid.scale[part].numpy(), np.zeros((6 // groups, 1), np.int32))
        problem = WeightProblem(layer.weight[part].numpy(), WeightFormat(-8, 7, True, 12), None, x.T @ x)
        assert np.array_equal(integers[part], gptq_on(grid, problem))


def gptq_on(grid: Grid, problem: WeightProblem) -> np.ndarray:
    """The recursion for one Hessian, in numpy, on a grid that is given."""
    module = sys.modules[gptq.__module__]
    before = module.searched_grid
    module.searched_grid = lambda _: grid
    try:
        return gptq(problem, damping=0.01).integers
    finally:
        module.searched_grid = before


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("bias", [False, True])
def test_sweeps_lower_the_error_until_no_single_integer_can(groups: int, bias: bool) -> None:
    layer = random_layer(8, 10, groups=groups, bias=bias)
    exact = replace(layer, outputs=layer.product(layer.weight))  # nothing is to be made up for
    errors = []
    for sweeps in (0, 1, 8):
        integers, grid = sequential_gptq(exact, SequentialGptq(damping=1e-6, sweeps=sweeps))
        errors.append(float(error(exact, grid.dequantized(integers)).sum()))
    assert errors[2] <= errors[1] * 1.0001 and errors[1] < 0.97 * errors[0]
    own = error(exact, grid.dequantized(integers))
    for column in range(10):
        for step in (-1, 1):
            moved = integers.clone()
            moved[:, column] = (moved[:, column] + step).clamp(grid.low, grid.high)
            assert bool((error(exact, grid.dequantized(moved)) >= own * 0.999).all())


def test_propagation_makes_up_for_what_is_wrong_with_the_input() -> None:
    layer = random_layer(8, 10, groups=2, bits=8, rows=3000)
    layer = replace(layer, rows=layer.rows * 0.9)  # a drift that a layer can make up for: its weight times 1 / 0.9
    plain, made_up = (
        float(error(layer, grid.dequantized(integers)).sum())
        for integers, grid in (sequential_gptq(layer, SequentialGptq(1e-6, p, 0)) for p in (0.0, 1.0))
    )
    assert made_up < 0.2 * plain


def test_a_bias_gives_the_mean_output_back() -> None:
    layer = random_layer(8, 10, bias=True)
    weight = layer.grid.dequantized(layer.grid.nearest(layer.weight))
    bias = layer.corrected_bias(weight)
    assert bias is not None
    np.testing.assert_allclose((layer.product(weight) + bias).mean(0), layer.outputs.mean(0), atol=1e-4)
