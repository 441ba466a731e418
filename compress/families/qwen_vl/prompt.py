"""The chat template and the image placeholder, as text and as tokens."""

from collections.abc import Mapping
from pathlib import Path

from tokenizers import Tokenizer

from pocketport.compress.families.qwen_vl.config import QwenVLConfig
from pocketport.errors import InputError

TURN_START, TURN_END = "<|im_start|>", "<|im_end|>"
VISION_START, VISION_END, IMAGE = "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"
SYSTEM: Mapping[str, str] = {"qwen2_vl": "You are a helpful assistant.", "qwen2_5_vl": "You are a helpful assistant."}


def chat_text(kind: str, question: str, image_tokens: int) -> str:
    """One user turn about an image up to where the assistant answers; the image stands before the question.

    Args:
        kind: ``model_type``; Qwen2-VL and Qwen2.5-VL have a system turn.
        question: what is asked.
        image_tokens: vision tokens of the image.
    """
    system = f"{TURN_START}system\n{SYSTEM[kind]}{TURN_END}\n" if kind in SYSTEM else ""
    image = VISION_START + IMAGE * image_tokens + VISION_END
    return f"{system}{TURN_START}user\n{image}{question}{TURN_END}\n{TURN_START}assistant\n"


def encode_prompt(
    tokenizer: Tokenizer, config: QwenVLConfig, question: str, image_tokens: int
) -> tuple[list[int], int]:
    """Tokenize `question` about an image of so many vision tokens.

    Returns:
        The tokens, and where the image's begin.

    Raises:
        InputError: the question holds the image's token.
    """
    ids = tokenizer.encode(chat_text(config.kind, question, image_tokens), add_special_tokens=False).ids
    if ids.count(config.tokens.image_token_id) != image_tokens:
        raise InputError(
            f"it holds the token {IMAGE}, which stands for an image", where="question", fix="take it out of the text"
        )
    return ids, ids.index(config.tokens.image_token_id)


def load_tokenizer(path: Path, config: QwenVLConfig) -> Tokenizer:
    """Read a ``tokenizer.json``.

    Raises:
        InputError: it is damaged, or its special tokens are not those of ``config.json``.
    """
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises bare Exception
        raise InputError(
            f"not a tokenizer: {error}", where=str(path), fix="give the checkpoint's tokenizer.json"
        ) from error
    tokens = config.tokens
    expected = {
        IMAGE: tokens.image_token_id,
        VISION_START: tokens.vision_start_token_id,
        VISION_END: tokens.vision_end_token_id,
    }
    for token, number in expected.items():
        if tokenizer.token_to_id(token) != number:
            raise InputError(
                f"its {token} is {tokenizer.token_to_id(token)}, config.json says {number}",
                where=str(path), fix="give the tokenizer.json that belongs to this checkpoint",
            )  # fmt: skip
    for token in (TURN_START, TURN_END):
        token_id(tokenizer, token)
    return tokenizer


def token_id(tokenizer: Tokenizer, token: str) -> int:
    """The id of a token.

    Raises:
        InputError: the tokenizer has no such token.
    """
    number: int | None = tokenizer.token_to_id(token)
    if number is None:
        raise InputError(f"it has no {token} token", where="tokenizer.json", fix="give the checkpoint's own tokenizer")
    return number
