"""The MiniCPM-V series."""

from pocketport.compress.families.minicpmv.load import load_minicpmv
from pocketport.compress.families.minicpmv.parity import compare
from pocketport.compress.families.registry import Family

FAMILY = Family("minicpmv", ("minicpmv",), load_minicpmv, compare)
