"""Log-mel spectrograms, as transformers' feature extractor of Whisper computes them.

Radford et al. 2022 (arXiv 2212.04356), section 2.2: short-time Fourier transform with Hann windows, power in triangular
bands of the mel scale of Slaney's Auditory Toolbox (1998), logarithm, the loudest 80 dB, scaled to about −1…1.
"""

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from pocketport.compress.families.whisper.config import validated
from pocketport.errors import InputError

HIGHEST_HERTZ = 8000.0
LINEAR_HERTZ, LINEAR_MELS = 1000.0, 15.0  # below it the mel scale is linear, above logarithmic
MELS_PER_E = 27.0 / np.log(6.4)
QUIETEST = 1e-10
RANGE = 8.0  # decades of power below the loudest


class LogMel(BaseModel):
    """The settings of ``preprocessor_config.json``; without the file, those of the published models."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    feature_size: int = Field(80, gt=0, le=4096)
    sampling_rate: int = Field(16000, gt=0, le=1 << 20)
    hop_length: int = Field(160, gt=0)
    chunk_length: int = Field(30, gt=0, le=3600)
    n_fft: int = Field(400, gt=1, le=1 << 16)
    padding_value: float = 0.0
    dither: float = Field(0.0, ge=0, le=0)  # random noise has no place in a reproducible run

    @classmethod
    def from_hf(cls, settings: Mapping[str, Any]) -> "LogMel":
        """A published ``preprocessor_config.json``; InputError names the key that is wrong."""
        return validated(cls, settings, "preprocessor_config.json")

    @property
    def samples(self) -> int:
        """Samples of a whole chunk."""
        return self.chunk_length * self.sampling_rate

    @property
    def frames(self) -> int:
        """Columns of the spectrogram."""
        return self.samples // self.hop_length

    @cached_property
    def filters(self) -> NDArray[np.float64]:
        """`mel_filters` of these settings."""
        return mel_filters(self.n_fft // 2 + 1, self.feature_size, self.sampling_rate)

    def apply(self, waveform: NDArray[Any]) -> NDArray[np.float32]:
        """One channel of sound [n], padded to a whole chunk → [1, feature_size, frames], float32.

        Raises:
            InputError: it is empty, longer than a chunk, not one channel of real numbers, or not finite.
        """
        sound = np.asarray(waveform)
        problems = {
            f"its shape is {list(sound.shape)}, one channel [n] is expected": sound.ndim != 1,
            f"it holds {sound.dtype}, not floats": sound.dtype.kind != "f",
            f"it has {sound.size} samples, the model takes 1 to {self.samples}": not 1 <= sound.size <= self.samples,
        }
        for why, found in problems.items():
            if found:
                fix = f"give float samples at {self.sampling_rate} Hz, {self.chunk_length} s at most at a time"
                raise InputError(why, where="waveform", fix=fix)
        if not np.isfinite(sound).all():
            raise InputError("it holds NaN or infinity", where="waveform", fix="clean the recording")
        chunk = np.full(self.samples, self.padding_value, np.float64)
        chunk[: sound.size] = sound.astype(np.float32)
        padded = np.pad(chunk, self.n_fft // 2, mode="reflect")
        windows = np.lib.stride_tricks.sliding_window_view(padded, self.n_fft)[:: self.hop_length][: self.frames]
        power = np.abs(np.fft.rfft(windows * np.hanning(self.n_fft + 1)[:-1])) ** 2
        decades = np.log10(np.maximum(self.filters @ power.T, QUIETEST))
        return np.asarray((np.maximum(decades, decades.max() - RANGE) + 4) / 4, np.float32)[None]


def mel_filters(bins: int, mels: int, sampling_rate: int) -> NDArray[np.float64]:
    """Triangles of equal area over the bins of a spectrum, evenly spaced in mel up to 8 kHz, [mels, bins]."""
    edges = _hertz(np.linspace(0.0, _mels(HIGHEST_HERTZ), mels + 2))
    left, centre, right = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    hertz = np.linspace(0, sampling_rate // 2, bins)[None]
    triangles = np.minimum((hertz - left) / (centre - left), (right - hertz) / (right - centre)).clip(0.0)
    filters: NDArray[np.float64] = triangles * 2 / (right - left)
    return filters


def _mels(hertz: float) -> float:
    """Slaney's scale, above its linear part."""
    return float(LINEAR_MELS + np.log(hertz / LINEAR_HERTZ) * MELS_PER_E)


def _hertz(mels: NDArray[np.float64]) -> NDArray[np.float64]:
    linear = mels * LINEAR_HERTZ / LINEAR_MELS
    curved = LINEAR_HERTZ * np.exp((mels - LINEAR_MELS) / MELS_PER_E)
    return np.where(mels < LINEAR_MELS, linear, curved)
