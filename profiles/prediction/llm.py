"""Speed of a language model on a phone, from its shape: bytes per token over bandwidth, products over operations per second.

Both phases are sums of what the hardware is known to spend time on, with one coefficient each per device and runtime::

    decode, ms a token   = weights·GB read + cache·GB of keys and values + attention·GMACs of attention + layer·layers + offset
    prefill, ms a token  = products·GMACs + attention·GMACs of attention + layer·layers

fitted by ``benchmarks/llm_speed_prediction.py`` to measured speeds (``llm_parameters.json``). Decoding is bound by memory, so on a chip that
was not measured the first two follow its published bandwidth; nothing published says as much about prefill.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from pocketport.profiles.device import DeviceProfile, load_device
from pocketport.profiles.measurement import Measurement, Provenance, ProvenanceKind

DECODE = ("weights", "cache", "attention", "layer", "offset")
PREFILL = ("products", "attention", "layer")
BANDWIDTH_SPREAD = 0.35  # log half-width that another chip's share of the published bandwidth adds


@dataclass(frozen=True)
class LanguageShape:
    """A decoder's shape.

    Attributes:
        layers: how many.
        hidden: width of the residual stream.
        inner: width of the gated MLP.
        heads: query heads.
        kv_heads: heads of keys and values.
        head_size: width of a head.
        vocabulary: rows of the output head.
        attention_layers: layers with a key-value cache; None: all.
    """

    layers: int
    hidden: int
    inner: int
    heads: int
    kv_heads: int
    head_size: int
    vocabulary: int
    attention_layers: int | None = None

    @property
    def linear_parameters(self) -> int:
        """Weights of all layers' products."""
        attention = 2 * self.hidden * self.head_size * (self.heads + self.kv_heads)
        return self.layers * (attention + 3 * self.hidden * self.inner)

    @property
    def head_parameters(self) -> int:
        """Weights of the output head."""
        return self.hidden * self.vocabulary

    def weight_bytes(self, weight_bits: float, head_bits: float) -> float:
        """Bytes of weights that one token reads."""
        return (self.linear_parameters * weight_bits + self.head_parameters * head_bits) / 8

    def cache_bytes(self, context: int, bits: float) -> float:
        """Bytes of keys and values of `context` tokens."""
        layers = self.layers if self.attention_layers is None else self.attention_layers
        return 2 * layers * self.kv_heads * self.head_size * context * bits / 8

    def attention_macs(self, context: int) -> float:
        """Multiply-accumulates of one token's attention to `context` tokens."""
        layers = self.layers if self.attention_layers is None else self.attention_layers
        return 2.0 * layers * self.heads * self.head_size * context


@dataclass(frozen=True)
class Encoding:
    """Bits of an element: of the layers' weights (scales included), of the output head, of the cache."""

    weight_bits: float
    head_bits: float
    cache_bits: float


# As the runtimes keep them: 4-bit weights per channel with an 8-bit head and cache, both in float16 where activations are;
# llama.cpp's blocks of 32 with a float16 scale.
ENCODINGS: Mapping[str, Encoding] = {
    "w4a16": Encoding(4, 8, 8),
    "w4": Encoding(4, 16, 16),
    "q4_0": Encoding(4.5, 6.5, 16),
    "q8_0": Encoding(8.5, 8.5, 16),
}


def decode_terms(shape: LanguageShape, encoding: Encoding, context: int) -> NDArray[np.float64]:
    """What `DECODE`'s coefficients multiply, [5]."""
    weights = shape.weight_bytes(encoding.weight_bits, encoding.head_bits) / 1e9
    cache, attention = shape.cache_bytes(context, encoding.cache_bits) / 1e9, shape.attention_macs(context) / 1e9
    return np.array([weights, cache, attention, shape.layers, 1.0])


def prefill_terms(shape: LanguageShape, context: int) -> NDArray[np.float64]:
    """What `PREFILL`'s coefficients multiply, [3]; a prompt that fills `context` attends to half of it on average."""
    return np.array([shape.linear_parameters / 1e9, shape.attention_macs(context) / 2e9, shape.layers])


class Coefficients(BaseModel):
    """Of one phase, in the order of `DECODE` or `PREFILL`, with the conformal bounds of models that were held out."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    values: tuple[float, ...]
    low: float
    high: float
    median_ape: float
    n: int


class RuntimeSpeed(BaseModel):
    """One device and runtime."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    target: str
    runtime: str
    unit: str
    decode: Coefficients
    prefill: Coefficients | None


class LanguageParameters(BaseModel):
    """``llm_parameters.json``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    provenance: str
    speeds: tuple[RuntimeSpeed, ...]


@cache
def language_parameters() -> LanguageParameters:
    """Those that come with the package."""
    text = resources.files("pocketport.profiles.prediction").joinpath("llm_parameters.json").read_text(encoding="utf-8")
    return LanguageParameters.model_validate_json(text)


def predict_llm(
    shape: LanguageShape, encoding: Encoding, device: DeviceProfile, *, runtime: str, unit: str = "npu", context: int
) -> dict[str, Measurement]:
    """``tokens_per_second`` and ``prefill_tokens_per_second``, as far as something is known.

    Args:
        shape: of the decoder.
        encoding: of its weights and cache.
        device: measured, or with a published bandwidth.
        runtime: ``genie``, ``geniex_qairt`` or ``geniex_llamacpp``.
        unit: ``npu``, ``cpu`` or ``gpu``.
        context: tokens that the cache holds.

    Returns:
        Tokens a second with intervals; empty where the runtime was measured on no comparable chip.
    """
    speeds = [s for s in language_parameters().speeds if (s.runtime, s.unit) == (runtime, unit)]
    own = next((s for s in speeds if s.target == device.target), None)
    if own is not None:
        found = {
            "tokens_per_second": _speed("tokens_per_second", own.decode, decode_terms(shape, encoding, context), 1.0, 0.0, device.name)
        }  # fmt: skip
        if own.prefill is not None:
            name = "prefill_tokens_per_second"
            found[name] = _speed(name, own.prefill, prefill_terms(shape, context), 1.0, 0.0, device.name)
        return found
    lent = [(s, p) for s in speeds if (p := load_device(s.target)) and p.dram_gbps and p.vendor == device.vendor]
    if device.dram_gbps is None or not lent:
        return {}
    wanted = device.dram_gbps.value
    near, profile = min(
        lent, key=lambda pair: abs(np.log(pair[1].dram_gbps.value / wanted)) if pair[1].dram_gbps else 9
    )
    assert profile.dram_gbps is not None
    slower = profile.dram_gbps.value / wanted
    terms = decode_terms(shape, encoding, context) * np.array([slower, slower, 1.0, 1.0, 1.0])
    told = f"{profile.name}'s share of the published bandwidth"
    return {"tokens_per_second": _speed("tokens_per_second", near.decode, terms, 1.0, BANDWIDTH_SPREAD, told)}


def _speed(
    name: str, fitted: Coefficients, terms: NDArray[np.float64], scale: float, spread: float, whose: str
) -> Measurement:
    ms = scale * float(terms @ np.array(fitted.values))
    low, high = (float(np.exp(np.sign(np.log(v)) * np.hypot(np.log(v), spread))) for v in (fitted.low, fitted.high))
    detail = f"speed of {whose}; models held out: median error {fitted.median_ape:.0%}, n {fitted.n}"
    return Measurement(
        name,
        1e3 / ms,
        "tok/s",
        Provenance(ProvenanceKind.PREDICTED, detail),
        low=1e3 / (ms * high),
        high=1e3 / (ms * low),
    )
