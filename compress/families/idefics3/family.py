"""Idefics3 and SmolVLM."""

from pocketport.compress.families.idefics3.config import MODEL_TYPES
from pocketport.compress.families.idefics3.load import language_host, load_idefics3
from pocketport.compress.families.idefics3.parity import compare
from pocketport.compress.families.idefics3.runner import Idefics3Chat
from pocketport.compress.families.registry import Family

FAMILY = Family("idefics3", MODEL_TYPES, load_idefics3, compare, host=language_host, chat=Idefics3Chat)
