"""Vision towers on their own, and image-text encoders."""

from pocketport.compress.families.registry import Family
from pocketport.compress.families.vision.config import CLIP, NAFLEX, SIGLIP, VISION_TYPES
from pocketport.compress.families.vision.host import image_feeds, meaningful_rows
from pocketport.compress.families.vision.load import load_vision
from pocketport.compress.families.vision.parity import compare

FAMILY = Family(
    "vision", (SIGLIP, NAFLEX, CLIP, *VISION_TYPES), load_vision, compare, image_feeds=image_feeds,
    meaningful_rows=meaningful_rows,
)  # fmt: skip
