"""How long quantizing will take and how much memory, from the plan and a second of measuring this machine."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

import torch

from pocketport.compress.blockwise.damping import CANDIDATES
from pocketport.compress.blockwise.damping import ROWS as TRIAL_ROWS
from pocketport.compress.blockwise.grids import Form, extreme_grid, round_to, searched_grid
from pocketport.compress.blockwise.half_quadratic import half_quadratic_grid
from pocketport.compress.blockwise.options import GptqOptions
from pocketport.compress.blockwise.rounding import RUN_ELEMENTS
from pocketport.compress.blockwise.segments import layer_number
from pocketport.compress.executors.torch_executor import linear
from pocketport.compress.formats.contract import WeightPlan
from pocketport.compress.formats.sizes import GGML_BLOCKS
from pocketport.compress.torch_device import best_device

BASE_BYTES = 700 << 20  # interpreter, torch and the graphs
WRITE_BYTES_PER_SECOND = 500e6
LEAST_BUDGET = 256 << 20
PROBE_ROWS, PROBE_COLUMNS = 1024, 2048
# Of one K × K matrix in flops: Cholesky K³/3 and triangular inverse K³, twice as slow as a product.
FACTOR_FLOPS = 2 * (1 / 3 + 1)
HESSIAN_COPIES = 4  # sums, reordered, factor, inverse
DISTILLATION_FLOPS = (
    10  # of each weight a token: float and quantized forwards, forwards again, and two products backwards
)
TRIAL_FLOPS = 3  # of N·K² a weight that is rounded on trial: rounding, and its error
SWEEP_FLOPS = 11  # of N·K² a weight: four products to fit scales, one and a half to descend


@dataclass(frozen=True)
class Estimate:
    """What a run will take.

    Attributes:
        seconds: wall time.
        peak_bytes: resident memory at most, mapped pages of the checkpoint included.
        basis: what was measured, in words.
    """

    seconds: float
    peak_bytes: int
    basis: str


def estimate(plans: Sequence[WeightPlan], tokens: int, memory_limit: int) -> Estimate:
    """Estimate `quantize_weights` over these plans.

    Args:
        plans: of tensors that become integers.
        tokens: of all calibration samples together.
        memory_limit: bytes.
    """
    gptq = [p for p in plans if p.algorithm == "gptq"]
    watched = [p for p in plans if p.algorithm == "importance"]
    free = [p for p in plans if p.algorithm not in ("gptq", "importance")]
    speeds = _measured({p.algorithm for p in plans} | {"ggml" for p in gptq if p.scheme in GGML_BLOCKS})
    chains = _chains(plans)
    seconds = sum(p.bytes_after for p in plans) / WRITE_BYTES_PER_SECOND
    for plan in (*free, *watched):
        seconds += prod(plan.shape) / speeds.get(plan.algorithm, speeds["mse"])
    for plan in (*gptq, *watched):
        seconds += chains * 2.0 * prod(plan.shape) * tokens / speeds["flops"]
    for plan in _inputs(gptq):
        columns = plan.shape[-1]
        flops = (2 * chains - 1) * columns**2 * tokens + (1 + _trials(plan)) * FACTOR_FLOPS * columns**3
        seconds += flops / speeds["flops"]
    for plan in gptq:
        n, k = plan.shape
        options, searched = GptqOptions.of(plan.options), speeds["ggml" if plan.scheme in GGML_BLOCKS else "mse"]
        seconds += (1 + SWEEP_FLOPS * options.sweeps) * n * k * k / speeds["flops"] + n * k / searched
        tried = _trials(plan) * min(n, TRIAL_ROWS)
        seconds += TRIAL_FLOPS * tried * k * k / speeds["flops"] + tried * k / searched
        seconds += DISTILLATION_FLOPS * options.distillation * n * k * tokens / speeds["flops"]
    return Estimate(seconds, _peak(plans, gptq, watched, tokens, memory_limit), _basis(speeds))


def activation_budget(plans: Sequence[WeightPlan], memory_limit: int) -> int:
    """Bytes that activations may keep in memory: what the limit leaves beside weights and Hessians."""
    return max(LEAST_BUDGET, memory_limit - BASE_BYTES - _working_bytes(plans))


def _working_bytes(plans: Sequence[WeightPlan]) -> int:
    """One layer's weights in float32, of both chains, and the largest Hessian with its factor."""
    layers: dict[int, int] = {}
    for plan in plans:
        number = layer_number(plan.tensor) or 0
        layers[number] = layers.get(number, 0) + 4 * prod(plan.shape)
    gptq = [p for p in plans if p.algorithm == "gptq"]
    chains = _chains(plans)
    copies = HESSIAN_COPIES + chains - 1 + any(GptqOptions.of(p.options).sweeps for p in gptq)
    copies += (1 + chains) * any(_trials(p) for p in gptq)
    largest = max((4 * prod(p.shape) for p in plans), default=0)
    hessian = 4 * max((p.shape[-1] for p in gptq), default=0) ** 2
    return chains * max(layers.values(), default=0) + 3 * largest + copies * hessian


def _chains(plans: Sequence[WeightPlan]) -> int:
    """Runs of the layers: the quantized one, and the float one where the error of earlier weights is made up for."""
    return 1 + any(p.algorithm == "gptq" and GptqOptions.of(p.options).propagation for p in plans)


def _peak(
    plans: Sequence[WeightPlan], gptq: Sequence[WeightPlan], watched: Sequence[WeightPlan], tokens: int, limit: int
) -> int:
    calibrated = [*gptq, *watched]
    widest = max((p.shape[-1] for p in calibrated), default=0)
    narrowest = min((p.shape[-1] for p in calibrated), default=0)
    activations = 4 * tokens * (widest + narrowest) * _chains(calibrated)
    held = min(activations, activation_budget(calibrated, limit)) + _working_bytes(calibrated) if calibrated else 0
    free = max((prod(p.shape) * 2 + p.bytes_after * 4 for p in plans), default=0) + RUN_ELEMENTS * 16
    return BASE_BYTES + max(held, free)


def _inputs(gptq: Sequence[WeightPlan]) -> list[WeightPlan]:
    """A weight of every activation that has a Hessian."""
    return list({(p.component, p.activation): p for p in gptq}.values())


def _trials(plan: WeightPlan) -> int:
    """Dampings that are tried."""
    return len(CANDIDATES) if GptqOptions.of(plan.options).damping_search else 0


def _measured(algorithms: set[str]) -> dict[str, float]:
    """Weights rounded a second by algorithm, and flops of matrix products."""
    generator = torch.Generator().manual_seed(0)
    device = best_device()
    weight = torch.randn(PROBE_ROWS, PROBE_COLUMNS, generator=generator).to(device)
    form = Form(4, 128, True, True)
    with torch.inference_mode():
        speeds = {"mse": weight.numel() / best_seconds(lambda: round_to(weight, searched_grid(weight, form)))}
        if "rtn" in algorithms:
            speeds["rtn"] = weight.numel() / best_seconds(lambda: round_to(weight, extreme_grid(weight, form)))
        if "hqq" in algorithms:
            speeds["hqq"] = weight.numel() / best_seconds(lambda: round_to(weight, half_quadratic_grid(weight, form)))
        if algorithms & {"ggml", "importance"}:
            speeds["ggml"] = speeds["importance"] = weight.numel() / best_seconds(lambda: _pack(weight))
        product = best_seconds(lambda: linear(weight, weight))
    speeds["flops"] = 2.0 * PROBE_ROWS * PROBE_ROWS * PROBE_COLUMNS / product
    return speeds


def _pack(weight: torch.Tensor) -> None:
    from pocketport.compress.ggml.quantize import quantize

    quantize("q4_k", weight.cpu().numpy(), None)


def best_seconds(work: Callable[[], object], runs: int = 2) -> float:
    """The best of a few runs."""
    best = float("inf")
    for _ in range(runs):
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    return best


def _basis(speeds: dict[str, float]) -> str:
    rates = [f"{speeds['flops'] / 1e9:.0f} GFLOP/s"]
    rates += [
        f"{name} {speeds[name] / 1e6:.0f} M weights/s" for name in ("rtn", "mse", "hqq", "ggml") if name in speeds
    ]
    return "measured here: " + ", ".join(rates)
