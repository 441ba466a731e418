"""MediaTek SoCs that LiteRT's plugin compiles for, as data.

The part numbers and NeuroPilot generations are those of ai-edge-litert 2.3.0
(``aot/vendors/mediatek/target.py``). Some part numbers are sold under several names: one of them is given.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from pocketport.targets.checks import unknown_soc
from pocketport.targets.contract import Target

VENDOR = "mediatek"


@dataclass(frozen=True)
class Soc:
    """One SoC: part number, a name it is sold under ("" if unknown), the NeuroPilot generation it needs."""

    name: str
    marketing: str
    neuropilot: str = "v8"


_ROWS = (
    Soc("mt6853", "Dimensity 720"),
    Soc("mt6877", "Dimensity 900"),
    Soc("mt6878", "Dimensity 7300"),
    Soc("mt6879", "Dimensity 1050"),
    Soc("mt6886", "Dimensity 7200"),
    Soc("mt6893", "Dimensity 1200"),
    Soc("mt6895", "Dimensity 8100"),
    Soc("mt6897", "Dimensity 8300"),
    Soc("mt6983", "Dimensity 9000"),
    Soc("mt6985", "Dimensity 9200"),
    Soc("mt6989", "Dimensity 9300"),
    Soc("mt6991", "Dimensity 9400"),
    Soc("mt6993", "Dimensity 9500", neuropilot="v9"),
    Soc("mt8171", ""),
    Soc("mt8188", "Genio 700"),
    Soc("mt8189", "Genio 720"),
)

SOCS: Mapping[str, Soc] = {soc.name: soc for soc in _ROWS}


def find_soc(target: Target) -> Soc:
    """The SoC that `target` names; UsageError with the nearest names when there is none."""
    if target.soc not in SOCS:
        raise unknown_soc(target, SOCS)
    return SOCS[target.soc]
