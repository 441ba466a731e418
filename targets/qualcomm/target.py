"""Qualcomm SoCs as data: the number that the compiler knows each by, its Hexagon architecture and its VTCM.

Numbers are ``Qnn_SocModel_t`` of the public QnnTypes.h, and for newer chips those of the Supported Snapdragon
Devices table. Every number and architecture here was compiled for with QAIRT 2.51, and the architecture read back
from the binary. VTCM sizes are those of LiteRT's public ``soc_table.cc``, a file by Qualcomm; the compiler does not
check them: it takes 64 MB for any chip.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from pocketport.targets.checks import unknown_soc
from pocketport.targets.contract import Target

VENDOR = "qualcomm"

SMALLEST_VTCM_MB = 2
"""Least VTCM of any HTP in the public tables. A context that asks for less than a chip has runs on it."""


@dataclass(frozen=True)
class Soc:
    """One SoC.

    Attributes:
        name: part number in lower case.
        model: the compiler's ``soc_model``.
        arch: Hexagon architecture (``73`` for v73).
        marketing: the name it is sold under.
        published_vtcm_mb: MB of tightly coupled memory, None where no public source says.
    """

    name: str
    model: int
    arch: int
    marketing: str
    published_vtcm_mb: int | None = None

    @property
    def vtcm_mb(self) -> int:
        """MB of VTCM to compile for."""
        return self.published_vtcm_mb or SMALLEST_VTCM_MB

    @property
    def has_int16_matmul(self) -> bool:
        """Whether MatMul takes 16 bits in both operands (v73 on; before, the second one is 8 bits)."""
        return self.arch >= 73


_ROWS = (
    Soc("sm8350", 30, 68, "Snapdragon 888", 4),
    Soc("sm8450", 36, 69, "Snapdragon 8 Gen 1", 8),
    Soc("sm8475", 42, 69, "Snapdragon 8+ Gen 1", 8),
    Soc("sm7475", 54, 69, "Snapdragon 7+ Gen 2"),
    Soc("sm8550", 43, 73, "Snapdragon 8 Gen 2", 8),
    Soc("sm8635", 68, 73, "Snapdragon 8s Gen 3"),
    Soc("sm8735", 85, 73, "Snapdragon 8s Gen 4"),
    Soc("sm7550", 64, 73, "Snapdragon 7 Gen 3"),
    Soc("sm7675", 70, 73, "Snapdragon 7+ Gen 3"),
    Soc("sm7635", 73, 73, "Snapdragon 7s Gen 3"),
    Soc("sm7750", 86, 73, "Snapdragon 7 Gen 4"),
    Soc("sc8380xp", 60, 73, "Snapdragon X Elite", 8),
    Soc("sa8540p", 62, 68, "SA8540P (automotive)", 8),
    Soc("sa8255p", 52, 73, "SA8255P (automotive)", 8),
    Soc("qcs9100", 77, 73, "Dragonwing IQ-9100", 8),
    Soc("sm8650", 57, 75, "Snapdragon 8 Gen 3", 8),
    Soc("sm8750", 69, 79, "Snapdragon 8 Elite", 8),
    Soc("sm8850", 87, 81, "Snapdragon 8 Elite Gen 5", 8),
    Soc("sm8845", 97, 81, "Snapdragon 8 Gen 5"),
)

SOCS: Mapping[str, Soc] = {soc.name: soc for soc in _ROWS}


def find_soc(target: Target) -> Soc:
    """The SoC that `target` names; UsageError with the nearest names when there is none.

    The allow-list is ours on purpose: given a name it does not know, the vendor's compiler warns and compiles for v68.
    """
    if target.soc not in SOCS:
        raise unknown_soc(target, SOCS)
    return SOCS[target.soc]
