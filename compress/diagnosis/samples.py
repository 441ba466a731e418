"""Held-out samples as a diagnosis takes them, and the error of a component's outputs on them."""

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pocketport.calibration.metrics import EXACT_DB, decibels
from pocketport.compress.executors.ort_executor import Arrays


class Samples(Protocol):
    """What goes into one component and what comes out in float."""

    @property
    def feeds(self) -> Sequence[Arrays]:
        """Inputs by name, one mapping a sample."""
        ...

    @property
    def outputs(self) -> Sequence[Arrays]:
        """The float graph's results on them."""
        ...

    def used(self, results: Sequence[Arrays], key: str) -> NDArray[np.float64]:
        """One output of every sample without its padding, flat."""
        ...


def output_noise(samples: Samples, results: Sequence[Arrays]) -> dict[str, float]:
    """Output → energy of its error over the energy of float's, over all samples and without padding."""
    noise = {}
    for key in samples.outputs[0]:
        reference = samples.used(samples.outputs, key)
        error = float(np.square(samples.used(results, key) - reference).sum())
        energy = float(np.square(reference).sum())
        noise[key] = error / energy if energy else float(error > 0.0)
    return noise


def noise_db(noise: float) -> float:
    """Relative noise as SQNR in dB, at most EXACT_DB."""
    return decibels(1.0, noise, EXACT_DB)


def least_db(noise: Mapping[str, float]) -> float:
    """SQNR of the worst output: what `verify` calls the component's."""
    return noise_db(max(noise.values()))
