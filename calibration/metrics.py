"""How far one tensor is from another."""

import math

import numpy as np
from numpy.typing import NDArray

EXACT_DB = 200.0  # shown for tensors that are equal; float32 itself has about 150


def sqnr_db(reference: NDArray[np.generic], test: NDArray[np.generic]) -> float:
    """Signal to quantization noise ratio, 10·log10(Σ r² / Σ (r − t)²) in dB, in float64.

    It does not change when both tensors are scaled alike. Equal tensors give +inf; a reference of zeros that is
    not matched gives −inf.

    Raises:
        ValueError: the shapes differ.
    """
    if reference.shape != test.shape:
        raise ValueError(f"shapes differ: {reference.shape} and {test.shape}")
    r, t = np.asarray(reference, np.float64), np.asarray(test, np.float64)
    return decibels(float(np.square(r).sum()), float(np.square(r - t).sum()))


def decibels(signal: float, noise: float, limit: float = math.inf) -> float:
    """10·log10(signal / noise) of two energies, held within ±`limit`; no noise at all gives `limit`, more than floats hold −`limit`."""
    if noise == 0.0:
        return limit
    if signal <= 0.0 or math.isinf(noise):
        return -limit
    return max(-limit, min(limit, 10.0 * (math.log10(signal) - math.log10(noise))))
