"""Device profiles: what is known about a chip, figure by figure, with source and certainty. Data in ``devices/*.yaml``."""

from collections.abc import Mapping
from enum import StrEnum
from importlib import resources

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from pocketport.errors import InputError


class Certainty(StrEnum):
    """How far a published figure can be trusted."""

    CERTAIN = "certain"
    LIKELY = "likely"
    UNCERTAIN = "uncertain"


class Figure(BaseModel):
    """One published or fitted figure of a device."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    value: float
    source: str
    certainty: Certainty


class Spread(BaseModel):
    """How measured times lie around predicted ones.

    Attributes:
        low: 10 % of the measurements are below `low` times the prediction.
        high: 10 % are above `high` times the prediction.
        n: measurements behind it.
        median_ape: median absolute percentage error, as a share; None where `n` is too small to say.
        evidence: in words, for the provenance of every figure predicted with it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    low: float
    high: float
    n: int
    median_ape: float | None = None
    evidence: str


class GraphModel(BaseModel):
    """Latency from a graph's shapes: ``max(compute, memory) + offset``, see ``roofline.py``.

    Attributes:
        ms_per_gmac: milliseconds per 10⁹ multiply-accumulates.
        ms_per_op: milliseconds per op that is not folded.
        offset_ms: milliseconds of every call.
        spread: its error.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    ms_per_gmac: float
    ms_per_op: float
    offset_ms: float
    spread: Spread


class CompilerModel(BaseModel):
    """Latency from the vendor compiler's own estimate of a chip of the same architecture: ``slope·estimate + offset``.

    Attributes:
        estimate: key of the estimate in ``CompileResult.estimates``, in microseconds.
        slope: device milliseconds per estimated millisecond.
        offset_ms: milliseconds of every call.
        spread: its error.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    estimate: str
    slope: float
    offset_ms: float
    spread: Spread


class DeviceProfile(BaseModel):
    """One chip.

    Attributes:
        target: the identity that it belongs to, ``vendor/soc``.
        name: what the shop calls it, with a phone that has it.
        npu: the accelerator's architecture.
        dram_gbps: peak DRAM bandwidth, 10⁹ bytes/s.
        dram_share: share of the peak that a memory-bound graph reaches.
        npu_tops_int8: published peak, 10¹² ops/s (two per multiply-accumulate); None where none is published.
        on_chip_mb: VTCM (Hexagon) or system-level cache (Apple), 2²⁰ bytes.
        context_limit_mb: largest compiled context that the NPU's runtime loads, 2²⁰ bytes.
        app_memory_mb: memory an app may use before the system ends it, 2²⁰ bytes.
        graph: precision (``float``, ``w8a8``, ``w8a16``) → model.
        compiler: the same for the compiler-informed model.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    target: str
    name: str
    npu: str
    dram_gbps: Figure
    dram_share: Figure
    npu_tops_int8: Figure | None = None
    on_chip_mb: Figure | None = None
    context_limit_mb: Figure | None = None
    app_memory_mb: Figure | None = None
    graph: Mapping[str, GraphModel] = {}
    compiler: Mapping[str, CompilerModel] = {}


def device_ids() -> list[str]:
    """Targets that have a profile, ``vendor/soc``, sorted."""
    return sorted(load.target for load in _profiles())


def load_device(target_id: str) -> DeviceProfile | None:
    """The profile of ``vendor/soc[@sdk]``; None where nothing is known, and then nothing is predicted."""
    identity = target_id.partition("@")[0]
    return next((profile for profile in _profiles() if profile.target == identity), None)


def parse_device(text: str, where: str) -> DeviceProfile:
    """Parse a profile's YAML; InputError says what is wrong in it."""
    try:
        return DeviceProfile.model_validate(yaml.safe_load(text))
    except (yaml.YAMLError, ValidationError) as error:
        raise InputError(f"not a device profile: {error}", where=where, fix="correct the file") from error


def _profiles() -> list[DeviceProfile]:
    folder = resources.files("pocketport.profiles.devices")
    files = sorted((f for f in folder.iterdir() if f.name.endswith(".yaml")), key=lambda f: f.name)
    return [parse_device(f.read_text(encoding="utf-8"), f.name) for f in files]
