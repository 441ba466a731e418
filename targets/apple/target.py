"""Apple's chips, as data (``chips.toml``)."""

import tomllib
from functools import cache
from pathlib import Path

from pydantic import BaseModel, ConfigDict, TypeAdapter

from pocketport.targets.checks import unknown_soc
from pocketport.targets.contract import Target

VENDOR = "apple"
CORE_ML_MINIMUM_OS = "iOS 18, macOS 15"  # constexpr_blockwise_shift_scale and int4
CORE_AI_MINIMUM_OS = "iOS 27, macOS 27"


class Chip(BaseModel):
    """One chip: a device that has it, and the longest tensor dimension of its Neural Engine."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    device: str
    dimension: int


@cache
def chips() -> dict[str, Chip]:
    """Every chip that is known, by the name in a target's identity."""
    text = (Path(__file__).parent / "chips.toml").read_text(encoding="utf-8")
    return TypeAdapter(dict[str, Chip]).validate_python(tomllib.loads(text))


def chip_of(target: Target) -> Chip:
    """The chip of `target`; UsageError, with the nearest names, if there is none."""
    if target.soc not in chips():
        raise unknown_soc(target, chips())
    return chips()[target.soc]
