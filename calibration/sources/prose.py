"""English prose that every Python carries: the language reference's topics (``pydoc_data``), for calibrating on text.

Perplexity must not be reported on it: it is what calibration has seen.
"""

import re
from importlib import import_module

LEAST_PARAGRAPH = 80  # characters; shorter ones are headings and grammar rules


def prose() -> str:
    """Paragraphs of the topics in the order of their names, markup removed, about 0.4 MB."""
    topics: dict[str, str] = import_module("pydoc_data.topics").topics
    paragraphs = (p for name in sorted(topics) for p in re.split(r"\n\s*\n", topics[name]))
    plain = (re.sub(r"\s+", " ", re.sub(r"[*`|]|\"(?=\w)|(?<=\w)\"", "", p)).strip() for p in paragraphs)
    kept = dict.fromkeys(p for p in plain if len(p) >= LEAST_PARAGRAPH and "::=" not in p)
    return "\n\n".join(kept)
