"""The chat template and the image placeholders of MiniCPM-Llama3-V 2.5, as text and as tokens."""

from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from pocketport.errors import InputError

IMAGE_START, IMAGE_END = "<image>", "</image>"
SLICE_START, SLICE_END = "<slice>", "</slice>"
UNKNOWN = "<unk>"
BEGIN, END_OF_TURN = "<|begin_of_text|>", "<|eot_id|>"
HEADER_START, HEADER_END = "<|start_header_id|>", "<|end_header_id|>"

Span = tuple[int, int]


@dataclass(frozen=True)
class EncodedPrompt:
    """Tokens of one prompt.

    Attributes:
        input_ids: the tokens, ``[T]``.
        spans: per view, overview first, the half-open range of tokens that its vision tokens replace.
    """

    input_ids: list[int]
    spans: list[Span]


def image_placeholder(query_num: int, grid: tuple[int, int] | None) -> str:
    """The text that stands for one image: the overview, then `grid` (columns, rows) of slices by rows."""
    view = IMAGE_START + UNKNOWN * query_num + IMAGE_END
    if grid is None:
        return view
    columns, rows = grid
    return view + SLICE_START + "\n".join([view * columns] * rows) + SLICE_END


def chat_text(question: str, placeholder: str = "") -> str:
    """One user turn, in Llama 3's template, up to where the assistant answers."""
    content = f"{placeholder}\n{question}" if placeholder else question
    user = f"{HEADER_START}user{HEADER_END}\n\n{content}{END_OF_TURN}"
    return f"{BEGIN}{user}{HEADER_START}assistant{HEADER_END}\n\n"


def encode_prompt(
    tokenizer: Tokenizer, question: str, *, query_num: int, grid: tuple[int, int] | None
) -> EncodedPrompt:
    """Tokenize `question` about one image that was cut into `grid`."""
    text = chat_text(question, image_placeholder(query_num, grid))
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    start_id, end_id = tokenizer.token_to_id(IMAGE_START), tokenizer.token_to_id(IMAGE_END)
    starts = [index + 1 for index, token in enumerate(ids) if token == start_id]
    ends = [index for index, token in enumerate(ids) if token == end_id]
    return EncodedPrompt(ids, list(zip(starts, ends, strict=True)))


def load_tokenizer(path: Path) -> Tokenizer:
    """Read `path`, a ``tokenizer.json`` or the directory that holds one."""
    file = path / "tokenizer.json" if path.is_dir() else path
    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # tokenizers raises bare Exception
        raise InputError(
            f"not a tokenizer: {error}", where=str(file), fix="give the checkpoint's tokenizer.json"
        ) from error


def decode_answer(tokenizer: Tokenizer, tokens: list[int]) -> str:
    """Text of generated `tokens`, up to the end of the turn."""
    stop = tokenizer.token_to_id(END_OF_TURN)
    kept = tokens[: tokens.index(stop)] if stop in tokens else tokens
    return str(tokenizer.decode(kept, skip_special_tokens=True))
