"""The MiniCPM-V series, versions 1.0 to 4.5."""

from pocketport.compress.families.minicpmv.load import host_of, load_minicpmv
from pocketport.compress.families.minicpmv.parity import compare
from pocketport.compress.families.minicpmv.runner import MultimodalRunner, meaningful_rows
from pocketport.compress.families.registry import Family

FAMILY = Family(
    "minicpmv", ("minicpmv",), load_minicpmv, compare, host=host_of, chat=MultimodalRunner,
    meaningful_rows=meaningful_rows,
    original="transformers; resampler: torch's attention; tower of 1.0 and 2.0: own torch, equal to timm's",
)  # fmt: skip
