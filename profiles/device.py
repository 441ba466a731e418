"""Device profiles: what is known about a chip, figure by figure, with source and certainty. Data in ``devices/*.toml``."""

import re
import tomllib
from collections.abc import Mapping, Sequence
from enum import StrEnum
from functools import cache
from importlib import resources

from pydantic import BaseModel, ConfigDict, ValidationError

from pocketport.errors import InputError, UsageError
from pocketport.suggest import nearest


class Certainty(StrEnum):
    """How far a published figure can be trusted."""

    CERTAIN = "certain"
    LIKELY = "likely"
    UNCERTAIN = "uncertain"


class Figure(BaseModel):
    """One published figure of a device."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    value: float
    source: str
    certainty: Certainty


class DeviceProfile(BaseModel):
    """One chip. A figure that no source gives is None: nothing is guessed.

    Attributes:
        target: the identity that it belongs to, ``vendor/soc``.
        name: what the shop calls it.
        npu: the accelerator.
        kind: ``phone``, ``mid-range``, ``laptop``, ``automotive`` or ``embedded``: how much power it may take.
        phones: devices that have it, by their names in shops.
        measured_as: the device of the measurements that has this chip; empty where none was measured.
        architecture: of the accelerator: Hexagon's version, or the generation of Apple's chip.
        dram_gbps: peak DRAM bandwidth, 10⁹ bytes/s.
        npu_tops_int8: published peak, 10¹² ops/s (two per multiply-accumulate).
        on_chip_mb: VTCM (Hexagon) or system-level cache (Apple), 2²⁰ bytes.
        context_limit_mb: largest compiled context that the NPU's runtime loads, 2²⁰ bytes.
        app_memory_mb: memory an app may use before the system ends it, 2²⁰ bytes.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    target: str
    name: str
    npu: str
    kind: str
    phones: tuple[str, ...] = ()
    measured_as: str = ""
    architecture: Figure | None = None
    dram_gbps: Figure | None = None
    npu_tops_int8: Figure | None = None
    on_chip_mb: Figure | None = None
    context_limit_mb: Figure | None = None
    app_memory_mb: Figure | None = None

    @property
    def vendor(self) -> str:
        """The first half of the identity."""
        return self.target.partition("/")[0]

    @property
    def figures(self) -> Mapping[str, Figure]:
        """The figures that are known, by name."""
        found = {name: getattr(self, name) for name in type(self).model_fields}
        return {name: figure for name, figure in found.items() if isinstance(figure, Figure)}

    @property
    def names(self) -> frozenset[str]:
        """Everything it answers to, as `slug` writes it."""
        soc = self.target.partition("/")[2]
        return frozenset(slug(n) for n in (self.target, soc, self.name, self.measured_as, *self.phones) if n)


def slug(name: str) -> str:
    """``Galaxy S24+`` → ``galaxy-s24-plus``: the form in which names are compared."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower().replace("+", " plus")).strip("-")


def device_ids() -> list[str]:
    """Targets that have a profile, ``vendor/soc``, sorted."""
    return sorted(profile.target for profile in profiles())


def load_device(target_id: str) -> DeviceProfile | None:
    """The profile of ``vendor/soc[@sdk]``; None where nothing is known, and then nothing is predicted."""
    identity = target_id.partition("@")[0]
    return next((profile for profile in profiles() if profile.target == identity), None)


def find_device(name: str) -> DeviceProfile:
    """The profile of a target, a chip or a phone: ``qualcomm/sm8650``, ``Snapdragon 8 Gen 3``, ``galaxy-s24``.

    Raises:
        UsageError: no profile has that name.
    """
    wanted = slug(name)
    for profile in profiles():
        if wanted in profile.names:
            return profile
    known = sorted({n for profile in profiles() for n in profile.names})
    raise UsageError(
        f"no profile of {name!r}", where="--device", fix=f"{nearest(wanted, known)} (`pocketport devices list`)"
    )


def parse_device(text: str, where: str) -> DeviceProfile:
    """Parse a profile's TOML; InputError says what is wrong in it."""
    try:
        return DeviceProfile.model_validate(tomllib.loads(text))
    except (tomllib.TOMLDecodeError, ValidationError) as error:
        raise InputError(f"not a device profile: {error}", where=where, fix="correct the file") from error


@cache
def profiles() -> Sequence[DeviceProfile]:
    """All profiles that come with the package, by file name."""
    folder = resources.files("pocketport.profiles.devices")
    files = sorted((f for f in folder.iterdir() if f.name.endswith(".toml")), key=lambda f: f.name)
    return tuple(parse_device(f.read_text(encoding="utf-8"), f.name) for f in files)
