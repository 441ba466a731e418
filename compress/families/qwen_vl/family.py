"""The Qwen-VL series: images and text in, text out."""

from pocketport.compress.families.qwen_vl.config import MODEL_TYPES
from pocketport.compress.families.qwen_vl.load import language_host, load_qwen_vl
from pocketport.compress.families.qwen_vl.parity import compare
from pocketport.compress.families.qwen_vl.runner import QwenVLChat, meaningful_rows
from pocketport.compress.families.registry import Family

FAMILY = Family(
    "qwen_vl", MODEL_TYPES, load_qwen_vl, compare, host=language_host, chat=QwenVLChat, meaningful_rows=meaningful_rows,
)  # fmt: skip
