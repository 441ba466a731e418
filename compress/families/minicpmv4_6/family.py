"""MiniCPM-V 4.6 and 4.7."""

from pocketport.compress.families.minicpmv4_6.config import MODEL_TYPES
from pocketport.compress.families.minicpmv4_6.load import host_of, load_minicpmv46
from pocketport.compress.families.minicpmv4_6.parity import compare
from pocketport.compress.families.minicpmv4_6.runner import MergerChat, meaningful_rows
from pocketport.compress.families.registry import Family

FAMILY = Family(
    "minicpmv4_6", MODEL_TYPES, load_minicpmv46, compare, host=host_of, chat=MergerChat, meaningful_rows=meaningful_rows,
)  # fmt: skip
