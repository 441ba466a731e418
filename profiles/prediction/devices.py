"""Factors of a device: its own where it was measured, else those of measured chips of the same vendor that are like it."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from pocketport.profiles.device import DeviceProfile, load_device
from pocketport.profiles.prediction.parameters import FactorsData
from pocketport.profiles.prediction.roofline import Factors

# What makes two chips one unit apart: versions of the architecture, a ratio of bandwidths, another power class.
ARCHITECTURE_STEP, BANDWIDTH_STEP, OTHER_KIND = 3.0, math.log(1.5), 1.5
ALIKE = 3  # measured chips of one power class, from which on only these lend
GENERATION, SLOPE = 6.0, 0.05  # versions over which factors are taken to be linear; ridge of the slope
FEWEST = 12  # measurements that a device's factors need to lend to others


def distance(a: DeviceProfile, b: DeviceProfile) -> float | None:
    """How unlike two chips are, in the steps above; None where nothing can be compared: another vendor, no architecture."""
    if a.vendor != b.vendor or a.architecture is None or b.architecture is None:
        return None
    squares = [((a.architecture.value - b.architecture.value) / ARCHITECTURE_STEP) ** 2]
    if a.dram_gbps is not None and b.dram_gbps is not None:
        squares.append((math.log(a.dram_gbps.value / b.dram_gbps.value) / BANDWIDTH_STEP) ** 2)
    squares.append(OTHER_KIND**2 if a.kind != b.kind else 0.0)
    return math.sqrt(sum(squares))


def borrowed(
    device: DeviceProfile, known: Mapping[str, FactorsData], *, without: str = ""
) -> tuple[Factors, float, str] | None:
    """Factors for a chip that was not measured.

    Args:
        device: the chip.
        known: target → factors of the measured ones.
        without: a target to leave out.

    Returns:
        Their factors, the distance to the nearest, and whose they are: of the same power class linear in the version of the architecture,
        else medians weighted with exp(−distance²), since one chip of few that is a third as fast is no evidence about another;
        None where no measured chip can be compared.
    """
    near = []
    for target, factors in known.items():
        profile = load_device(target)
        if profile is None or target == without or factors.n < FEWEST or factors.log_spread:
            continue
        apart = distance(device, profile)
        if apart is not None:
            near.append((apart, profile.name, factors, profile))
    if not near:
        return None
    alike = [n for n in near if n[3].kind == device.kind]
    near = alike if len(alike) >= ALIKE else near
    distances = np.array([n[0] for n in near])
    logs = np.log([[n[2].matrix, n[2].vector, n[2].memory, n[2].overhead] for n in near])
    weights = np.exp(-(distances**2 - distances.min() ** 2))
    values = _between(device, [n[3] for n in near], logs) if near is alike else _medians(logs, weights)
    told = [near[i][1] for i in np.argsort(-weights)[:2] if weights[i] > 0.1]
    return Factors(*(float(v) for v in np.exp(values))), float(distances.min()), " and ".join(told)


def _medians(values: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weighted median of every column, linear between values."""
    order = np.argsort(values, axis=0)
    middles = np.cumsum(weights[order], 0) - weights[order] / 2
    ascending = np.take_along_axis(values, order, 0)
    return np.array([np.interp(weights.sum() / 2, m, v) for m, v in zip(middles.T, ascending.T, strict=True)])


def _between(device: DeviceProfile, others: Sequence[DeviceProfile], logs: NDArray[np.float64]) -> NDArray[np.float64]:
    """Locally linear in the version of the architecture: a chip between two generations lies between their factors."""
    assert device.architecture is not None
    steps = [p.architecture.value - device.architecture.value for p in others if p.architecture is not None]
    x = np.array(steps) / GENERATION
    weight, design = np.exp(-(x**2)), np.stack([np.ones_like(x), x], 1)
    normal = (design * weight[:, None]).T @ design + np.diag([0.0, SLOPE])
    return np.asarray(np.linalg.solve(normal, (design * weight[:, None]).T @ logs)[0])
