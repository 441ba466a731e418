"""Rotary positions as published configurations describe them, and their tables.

Rotary embeddings are Su et al. 2021 (arXiv 2104.09864). The scalings are those that ``config.json`` names under
``rope_scaling`` (``rope_parameters`` since transformers 5): ``linear`` divides every frequency; ``llama3`` divides
the low ones and blends in between (Llama 3.1); ``yarn`` blends by the number of rotations (Peng et al. 2023, arXiv
2309.00071); ``longrope`` divides each by a factor of its own (Ding et al. 2024, arXiv 2402.13753).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pocketport.errors import InputError

FloatArray: TypeAlias = NDArray[np.float32]

REQUIRED: Mapping[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": ("factor", "original_max_position_embeddings"),
    "longrope": ("short_factor", "long_factor"),
}
TEMPERED = ("yarn", "longrope")  # the kinds that also scale cosines and sines
FASTEST, STRONGEST = 1e4, 1e3  # radians per position, amplitude: beyond, a file is damaged
ALIASES: Mapping[str, str] = {"mrope": "default", "su": "longrope"}  # what older configurations call them


@dataclass(frozen=True)
class RopeConfig:
    """How positions become angles.

    Attributes:
        width: channels of one head that turn, its first ones; pairs (i, i + width/2) turn together.
        theta: base of the frequencies.
        kind: ``default``, ``linear``, ``llama3``, ``yarn`` or ``longrope``.
        factor: how much longer the context is than the one trained at first.
        original_length: that first context, in tokens.
        low_frequency_factor, high_frequency_factor: bounds of llama3's blend, in rotations over `original_length`.
        fast_rotations, slow_rotations: bounds of yarn's blend, likewise.
        truncated: yarn's bounds are rounded to whole channels.
        short_factors, long_factors: longrope's divisors, one for each pair of channels.
        long_from: contexts longer than this take `long_factors`.
        amplitude: cosines and sines are multiplied by it.
        sections: how many pairs follow the temporal, vertical and horizontal position (multimodal rotary positions,
            Qwen2-VL, arXiv 2409.12191); empty where positions are plain.
        interleaved: the three alternate from pair to pair (Qwen3-VL) rather than lying one behind another.
        still: channels of one head that do not turn, its last ones.
    """

    width: int
    theta: float
    kind: str = "default"
    factor: float = 1.0
    original_length: int = 0
    low_frequency_factor: float = 1.0
    high_frequency_factor: float = 4.0
    fast_rotations: float = 32.0
    slow_rotations: float = 1.0
    truncated: bool = True
    short_factors: tuple[float, ...] = ()
    long_factors: tuple[float, ...] = ()
    long_from: int = 0
    amplitude: float = 1.0
    sections: tuple[int, ...] = ()
    interleaved: bool = False
    still: int = 0

    @classmethod
    def from_hf(cls, parameters: Mapping[str, Any], *, width: int, longest: int) -> "RopeConfig":
        """The rotary parameters of one kind of layer.

        Args:
            parameters: ``rope_theta`` and, if scaled, the keys of ``rope_scaling``.
            width: channels of one head.
            longest: the model's ``max_position_embeddings``.

        Raises:
            InputError: the kind is not known, or a key that it needs is missing or no such number.
        """
        name = parameters.get("rope_type") or parameters.get("type") or "default"
        kind = ALIASES.get(str(name), str(name))
        if kind not in REQUIRED:
            raise _refused(
                f"the rotary positions {name!r} are not supported", "rope_type", f"known: {', '.join(REQUIRED)}"
            )
        lacking = [key for key in REQUIRED[kind] if parameters.get(key) is None]
        if lacking:
            raise _refused(f"{kind} rotary positions need it", lacking[0], "give the published config.json")
        share = parameters.get("partial_rotary_factor")
        try:
            turning = width if share is None else int(width * float(share))
            if not 0 < turning <= width:
                raise ValueError(f"partial_rotary_factor is {share}")
            return replace(_from_hf(parameters, kind, turning, longest), still=width - turning)
        except (TypeError, ValueError, ArithmeticError) as error:
            raise _refused(
                f"not rotary parameters: {error}", "rope_scaling", "give the published config.json"
            ) from error

    def frequencies(self, context: int) -> NDArray[np.float64]:
        """Radians per position of each pair of channels [width/2], in a context of this many tokens."""
        half = self.width // 2
        plain: NDArray[np.float64] = 1.0 / self.theta ** (np.arange(half, dtype=np.float64) / half)
        if self.kind == "linear":
            return plain / self.factor
        if self.kind == "llama3":
            rotations = self.original_length * plain / (2 * np.pi)
            low, high = self.low_frequency_factor, self.high_frequency_factor
            return self._blended(plain, np.clip((rotations - low) / (high - low), 0, 1))
        if self.kind == "yarn":
            return self._blended(plain, self._yarn_share())
        if self.kind == "longrope":
            factors = self.long_factors if context > self.long_from else self.short_factors
            return plain / np.asarray(factors, np.float64)
        return plain

    def tables(self, positions: NDArray[np.integer[Any]], context: int) -> tuple[FloatArray, FloatArray]:
        """Cosines and signed sines ([−sin, +sin]), each [T, width + still]: 1 and 0 where nothing turns.

        Args:
            positions: integers [T]; with `sections` also [3, T] (temporal, vertical, horizontal).
            context: how many tokens the caller's cache holds; only longrope asks.
        """
        frequencies = self.frequencies(context)
        if positions.ndim == 2:
            axes = self._axes()
            angles = positions.T[:, axes] * frequencies
        else:
            angles = positions[:, None] * frequencies
        cos, sin = np.cos(angles) * self.amplitude, np.sin(angles) * self.amplitude
        rest = np.ones((len(cos), self.still))
        return (
            np.concatenate([cos, cos, rest], -1).astype(np.float32),
            np.concatenate([-sin, sin, 0 * rest], -1).astype(np.float32),
        )

    def _axes(self) -> NDArray[np.int64]:
        """Which of the three positions each pair of channels follows [width/2]."""
        if not self.interleaved:
            return np.repeat(np.arange(len(self.sections)), self.sections)
        axes = np.zeros(self.width // 2, np.int64)
        for axis, count in enumerate(self.sections[1:], start=1):
            axes[axis : 3 * count : 3] = axis
        return axes

    def _blended(self, plain: NDArray[np.float64], share: NDArray[np.float64]) -> NDArray[np.float64]:
        """A share of each frequency as it is, the rest divided by `factor`."""
        blended: NDArray[np.float64] = plain * (share + (1 - share) / self.factor)
        return blended

    def _yarn_share(self) -> NDArray[np.float64]:
        """How much of each unscaled frequency stays [width/2]: 1 where it turns often, 0 where seldom."""

        def channel(rotations: float) -> float:
            turns = self.original_length / (rotations * 2 * math.pi)
            return self.width * math.log(turns) / (2 * math.log(self.theta))

        first, last = channel(self.fast_rotations), channel(self.slow_rotations)
        if self.truncated:
            first, last = math.floor(first), math.ceil(last)
        first, last = max(first, 0), min(last, self.width - 1)
        last += 0.001 if first == last else 0.0
        ramp: NDArray[np.float64] = (np.arange(self.width // 2, dtype=np.float64) - first) / (last - first)
        return 1.0 - ramp.clip(0.0, 1.0)


def _from_hf(parameters: Mapping[str, Any], kind: str, width: int, longest: int) -> RopeConfig:
    def number(key: str, default: float) -> float:
        value = parameters.get(key)
        return default if value is None else float(value)

    original = int(number("original_max_position_embeddings", longest))
    short, long = (tuple(map(float, parameters.get(f"{n}_factor") or ())) for n in ("short", "long"))
    sections = tuple(map(int, parameters.get("mrope_section") or ()))
    factor = number("factor", longest / original)
    if kind == "longrope" and not len(short) == len(long) == width // 2:
        raise ValueError(f"short_factor and long_factor must have {width // 2} numbers")
    if sections and (len(sections) != 3 or sum(sections) != width // 2 or min(sections) < 0):
        raise ValueError(f"mrope_section {list(sections)} must be three numbers that add up to {width // 2}")
    config = RopeConfig(
        width=width, theta=number("rope_theta", 10000.0), kind=kind, factor=factor, original_length=original,
        low_frequency_factor=number("low_freq_factor", 1.0), high_frequency_factor=number("high_freq_factor", 4.0),
        fast_rotations=number("beta_fast", 32.0), slow_rotations=number("beta_slow", 1.0),
        truncated=bool(parameters.get("truncate", True)), short_factors=short, long_factors=long, long_from=original,
        amplitude=number("attention_factor", _amplitude(parameters, kind, factor, original)) if kind in TEMPERED else 1.0,
        sections=sections, interleaved=bool(parameters.get("mrope_interleaved", False)),
    )  # fmt: skip
    with np.errstate(all="ignore"):
        frequencies = np.concatenate([config.frequencies(context) for context in (0, original + 1)])
    if not (np.abs(frequencies) <= FASTEST).all() or not 0 < config.amplitude <= STRONGEST:
        raise ValueError("they give no finite frequencies of a plausible size")
    return config


def _amplitude(parameters: Mapping[str, Any], kind: str, factor: float, original: int) -> float:
    """The papers' correction of the attention's temperature, for yarn and longrope."""
    if factor <= 1:
        return 1.0
    if kind == "longrope":
        return math.sqrt(1 + math.log(factor) / math.log(original))
    scale, every = parameters.get("mscale"), parameters.get("mscale_all_dim")
    if scale and every:
        return (0.1 * float(scale) * math.log(factor) + 1) / (0.1 * float(every) * math.log(factor) + 1)
    return 0.1 * math.log(factor) + 1


def _refused(why: str, key: str, fix: str) -> InputError:
    return InputError(why, where=f"config.json, {key}", fix=fix)
