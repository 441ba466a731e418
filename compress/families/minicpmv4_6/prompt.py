"""The prompt about one image: placeholders for its views, as text and as tokens."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from pocketport.compress.families.chat import Span
from pocketport.compress.families.minicpmv.prompt import (
    IMAGE_END,
    IMAGE_ID_END,
    IMAGE_ID_START,
    IMAGE_START,
    SLICE_END,
    SLICE_START,
    TURN_END,
)
from pocketport.compress.families.minicpmv.prompt import load_tokenizer as read_tokenizer
from pocketport.compress.families.minicpmv.slicing import Size
from pocketport.compress.families.minicpmv4_6.config import MiniCPMV46Config
from pocketport.compress.families.minicpmv4_6.template import Template
from pocketport.errors import InputError

NEEDED = (IMAGE_START, IMAGE_END, SLICE_START, SLICE_END, TURN_END)


@dataclass(frozen=True)
class EncodedPrompt:
    """Tokens of one prompt.

    Attributes:
        input_ids: the tokens, T of them.
        spans: per view, overview first, the half-open range of tokens that its vision tokens replace.
    """

    input_ids: list[int]
    spans: list[Span]


def stop_tokens(tokenizer: Tokenizer, published: Sequence[int]) -> list[int]:
    """The end of a turn first, then what else ends an answer."""
    end = tokenizer.token_to_id(TURN_END)
    return [*([] if end is None else [end]), *(token for token in published if token != end)]


def load_tokenizer(path: Path, config: MiniCPMV46Config) -> Tokenizer:
    """Read a ``tokenizer.json``.

    Raises:
        InputError: it is damaged, or lacks a token of this family.
    """
    tokenizer = read_tokenizer(path)
    lacking = [token for token in NEEDED if tokenizer.token_to_id(token) is None]
    if tokenizer.id_to_token(config.image_token_id) is None:
        lacking = [*lacking, f"with the image_token_id {config.image_token_id}"]
    if lacking:
        raise InputError(f"it has no token {lacking[0]}", where=str(path), fix="give the checkpoint's tokenizer.json")
    return tokenizer


def image_placeholder(image_token: str, tokens: Sequence[int], grid: Size | None, image_id: int | None) -> str:
    """The text that stands for one image: its number, the overview, then `grid` (columns, rows) of slices by rows.

    Args:
        image_token: stands for one vision token.
        tokens: how many vision tokens each view has, overview first.
        grid: columns and rows of the slices.
        image_id: the image's number among those of the prompt, where images are numbered.
    """
    number = "" if image_id is None else f"{IMAGE_ID_START}{image_id}{IMAGE_ID_END}"
    overview = IMAGE_START + image_token * tokens[0] + IMAGE_END
    if grid is None:
        return number + overview
    slices = [SLICE_START + image_token * count + SLICE_END for count in tokens[1:]]
    rows = ("".join(slices[first : first + grid[0]]) for first in range(0, len(slices), grid[0]))
    return number + overview + "\n".join(rows)


def encode_prompt(
    tokenizer: Tokenizer, template: Template, placeholder: str, question: str, config: MiniCPMV46Config, views: int
) -> EncodedPrompt:
    """Tokenize `question` about an image of so many views.

    Raises:
        InputError: the question holds the token that stands for images.
    """
    ids = tokenizer.encode(template.text(placeholder, question), add_special_tokens=False).ids
    spans = runs(ids, config.image_token_id)
    if len(spans) != views:
        raise InputError(
            "it holds the token that stands for an image", where="question", fix="take it out of the text"
        )  # fmt: skip
    return EncodedPrompt(ids, spans)


def runs(ids: Sequence[int], token: int) -> list[Span]:
    """Where `token` stands without interruption, as half-open ranges."""
    edges = np.diff(np.concatenate([[False], np.asarray(ids) == token, [False]]).astype(np.int8))
    return list(zip(np.flatnonzero(edges == 1).tolist(), np.flatnonzero(edges == -1).tolist(), strict=True))
