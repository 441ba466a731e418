"""Orthogonal matrices that spread every channel over all others."""

from functools import cache
from math import isqrt

import numpy as np
from numpy.typing import NDArray


def orthogonal(size: int, seed: int, *, hadamard: bool = True) -> NDArray[np.float64]:
    """A random orthogonal matrix [size, size], the same for the same seed.

    A randomized Hadamard matrix D·H/√size with random signs D, where a Hadamard matrix of that size is known (QuaRot,
    Ashkboos et al. 2024, arXiv 2404.00456, section 4); else, or without `hadamard`, the Q of a Gaussian matrix,
    uniform over all orthogonal matrices (Mezzadri 2007, arXiv math-ph/0609050).
    """
    random = np.random.default_rng([seed, size])
    matrix = hadamard_matrix(size) if hadamard else None
    if matrix is not None:
        signs = random.choice([-1.0, 1.0], size)
        return np.asarray(signs[:, None] * matrix / np.sqrt(size), np.float64)
    q, r = np.linalg.qr(random.standard_normal((size, size)))
    return np.asarray(q * np.sign(np.diagonal(r)), np.float64)


@cache
def hadamard_matrix(size: int) -> NDArray[np.float64] | None:
    """A Hadamard matrix of ±1, H·Hᵀ = size·I, or None where these constructions have none.

    Sylvester's doubling of 1 or of one of Paley's matrices (Paley 1933): order q + 1 for primes q ≡ 3 (mod 4), and
    2·(q + 1) for primes q ≡ 1 (mod 4).
    """
    half = hadamard_matrix(size // 2) if size % 2 == 0 else None
    if size == 1 or half is not None:
        return np.ones((1, 1)) if half is None else np.kron(np.array([[1.0, 1.0], [1.0, -1.0]]), half)
    if size % 4:
        return None
    if _is_prime(size - 1):  # ≡ 3 (mod 4)
        core = _bordered(size - 1, -1.0)
        return core + np.eye(size)
    q = size // 2 - 1
    if q % 4 == 1 and _is_prime(q):
        conference, eye = _bordered(q, 1.0), np.eye(q + 1)
        return np.kron(conference, [[1.0, 1.0], [1.0, -1.0]]) + np.kron(eye, [[1.0, -1.0], [-1.0, -1.0]])
    return None


def hadamard_factors(size: int) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Hadamard matrices [a, a] and [b, b], a·b = size and 1 < a ≤ b as near as they can be; None where there are none.

    Their Kronecker product is a Hadamard matrix of `size`, which takes a + b multiplications a channel, not a·b.
    """
    for a in range(isqrt(size), 1, -1):
        if size % a == 0:
            first, second = hadamard_matrix(a), hadamard_matrix(size // a)
            if first is not None and second is not None:
                return first, second
    return None


def _bordered(q: int, sign: float) -> NDArray[np.float64]:
    """Paley's conference matrix of order q + 1: Legendre symbols of differences, bordered by ones and `sign`."""
    symbol = np.full(q, -1.0)
    symbol[np.unique(np.arange(q) ** 2 % q)] = 1.0
    symbol[0] = 0.0
    index = np.arange(q)
    matrix = np.zeros((q + 1, q + 1))
    matrix[0, 1:], matrix[1:, 0] = 1.0, sign
    matrix[1:, 1:] = symbol[(index[:, None] - index[None, :]) % q]
    return matrix


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % d for d in range(2, int(number**0.5) + 1))
