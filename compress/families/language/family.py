"""Decoder-only language models."""

from pocketport.compress.families.language.load import MODEL_TYPES, language_host, load_language
from pocketport.compress.families.language.parity import compare
from pocketport.compress.families.registry import Family

FAMILY = Family(
    "language", MODEL_TYPES, load_language, compare, host=language_host,
    original="transformers; MiniCPM: own torch of its published equations",
)  # fmt: skip
