"""What surrounds the chip: processor, memory for an app, storage; and how well an engine uses the processor. Data in TOML."""

import tomllib
from collections.abc import Mapping
from functools import cache
from importlib import resources

from pydantic import BaseModel, ConfigDict, ValidationError

from pocketport.errors import InputError, UsageError
from pocketport.profiles.device import DeviceProfile, Figure, find_device, slug
from pocketport.suggest import nearest


class Handset(BaseModel):
    """One device, beyond its chip's `DeviceProfile`. A figure that no source gives is None: nothing is guessed.

    Attributes:
        name: what the shop calls it.
        target: ``vendor/soc`` of its chip.
        cpu_gflops: peak of the vector units of all cores in float16, 10⁹ operations/s (two per multiply-accumulate).
        storage_gbps: sequential reads, 10⁹ bytes/s.
        app_memory_gb: what one app holds before the system pages, 10⁹ bytes.
        paging_gbps: how fast what was paged out comes back, 10⁹ bytes/s.
        serialize_limit_mb: largest graph that the NPU's compiler writes, 2²⁰ bytes.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    target: str
    cpu_gflops: Figure
    storage_gbps: Figure
    app_memory_gb: Figure | None = None
    paging_gbps: Figure | None = None
    serialize_limit_mb: Figure | None = None

    @property
    def chip(self) -> DeviceProfile:
        """The profile of its chip."""
        return find_device(self.target)


class Configuration(BaseModel):
    """One way to build and to set up an engine on the processor.

    Attributes:
        name: in words.
        vision_share: of the processor's peak, while pictures are encoded.
        language_share: of the processor's peak, while a prompt is read.
        bandwidth_share: of the DRAM's peak, while tokens are generated.
        spread: published times of devices that were not fitted lie within this factor of the predicted ones.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    vision_share: Figure
    language_share: Figure
    bandwidth_share: Figure
    spread: Figure


def find_handset(name: str) -> Handset:
    """A device by its name in shops, ``xiaomi-14-pro``.

    Raises:
        UsageError: there is no such file.
    """
    wanted = slug(name)
    known = {slug(handset.name): handset for handset in handsets()}
    if wanted not in known:
        raise UsageError(
            f"nothing is known of the processor, memory and storage of {name!r}",
            where="--device", fix=nearest(wanted, known),
        )  # fmt: skip
    return known[wanted]


@cache
def handsets() -> tuple[Handset, ...]:
    """All that come with the package, by file name."""
    folder = resources.files("pocketport.profiles.timeline.handsets")
    files = sorted((f for f in folder.iterdir() if f.name.endswith(".toml")), key=lambda f: f.name)
    return tuple(parse_handset(f.read_text(encoding="utf-8"), f.name) for f in files)


def parse_handset(text: str, where: str) -> Handset:
    """Parse a handset's TOML; InputError says what is wrong in it."""
    try:
        return Handset.model_validate(tomllib.loads(text))
    except (tomllib.TOMLDecodeError, ValidationError) as error:
        raise InputError(f"not a handset: {error}", where=where, fix="correct the file") from error


@cache
def configurations() -> Mapping[str, Configuration]:
    """llama.cpp's, from the slowest to the fastest."""
    text = resources.files("pocketport.profiles.timeline").joinpath("llama_cpp.toml").read_text(encoding="utf-8")
    return {name: Configuration.model_validate(table) for name, table in tomllib.loads(text).items()}


def find_configuration(name: str) -> Configuration:
    """By name; UsageError with the nearest one otherwise."""
    if name not in configurations():
        raise UsageError(f"no configuration {name!r}", where="--configuration", fix=nearest(name, configurations()))
    return configurations()[name]
