"""A figure and where it came from."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal, TypeAlias

ExecutedBy: TypeAlias = Literal["measured", "emulated"]


class ProvenanceKind(StrEnum):
    """How a figure was obtained; nothing is shown without one."""

    MEASURED = "measured"
    EMULATED = "emulated"
    PREDICTED = "predicted"
    PUBLISHED = "published"


@dataclass(frozen=True)
class Provenance:
    """`detail` says on what machine, with which emulator, by which model (and its error), or in which source."""

    kind: ProvenanceKind
    detail: str


@dataclass(frozen=True)
class Measurement:
    """One figure.

    Attributes:
        name: ``image_encode``, ``time_to_first_token``, ``tokens_per_second``, ``peak_memory``, ``artifact_size``,
            ``<component>_latency``, ... (snake case).
        value: in `unit`.
        unit: ``ms``, ``tok/s``, ``bytes``, ``points``, ``share``.
        provenance: where it came from.
        low: lower end of the spread or interval, same unit.
        high: upper end.
    """

    name: str
    value: float
    unit: str
    provenance: Provenance
    low: float | None = None
    high: float | None = None
