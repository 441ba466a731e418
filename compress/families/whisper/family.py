"""Whisper encoder-decoders."""

from pocketport.compress.families.registry import Family
from pocketport.compress.families.whisper.load import load_whisper
from pocketport.compress.families.whisper.parity import compare

FAMILY = Family("whisper", ("whisper",), load_whisper, compare)
