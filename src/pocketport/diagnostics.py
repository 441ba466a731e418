"""One format for everything a target has to say about a model."""

from dataclasses import asdict, dataclass
from enum import StrEnum


class Severity(StrEnum):
    """How much a Diagnostic matters: an ERROR stops its component, the others are told."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


@dataclass(frozen=True)
class Diagnostic:
    """One finding.

    Attributes:
        code: stable identifier, ``vendor.topic``, e.g. ``qualcomm.unsupported-op``.
        severity: see Severity.
        where: component, node and op (or file, SoC, SDK version) it is about.
        why: the reason, in a sentence.
        fix: what to do about it.
    """

    code: str
    severity: Severity
    where: str
    why: str
    fix: str

    def to_json(self) -> dict[str, str]:
        """The document form, as in ``run.json``."""
        return {key: str(value) for key, value in asdict(self).items()}
