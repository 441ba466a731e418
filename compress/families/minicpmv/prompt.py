"""The chat templates and the image placeholders of every version, as text and as tokens."""

import json
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from pocketport.errors import InputError

IMAGE_START, IMAGE_END = "<image>", "</image>"
SLICE_START, SLICE_END = "<slice>", "</slice>"
IMAGE_ID_START, IMAGE_ID_END = "<image_id>", "</image_id>"
UNKNOWN = "<unk>"
BEGIN, END_OF_TURN = "<|begin_of_text|>", "<|eot_id|>"
HEADER_START, HEADER_END = "<|start_header_id|>", "<|end_header_id|>"
TURN_START, TURN_END = "<|im_start|>", "<|im_end|>"

Span = tuple[int, int]


@dataclass(frozen=True)
class Template:
    """One user turn of a chat.

    Attributes:
        before: what comes before the user's content.
        after: what comes behind it, up to where the assistant answers.
        stops: tokens that end an answer, the usual one first.
        marked_slices: each slice stands between its own markers; otherwise one pair encloses all slices.
    """

    before: str
    after: str
    stops: tuple[str, ...]
    marked_slices: bool


def _chatml(system: str = "", opening: str = "", *, end: str) -> Template:
    """ChatML: a system turn if there is one, and how the answer opens."""
    first = f"{TURN_START}system\n{system}{TURN_END}\n" if system else ""
    return Template(
        f"{first}{TURN_START}user\n", f"{TURN_END}\n{TURN_START}assistant\n{opening}", (TURN_END, end), True
    )  # fmt: skip


MINICPM = Template("<s><用户>", "<AI>", ("</s>",), marked_slices=False)
LLAMA3 = Template(
    f"{BEGIN}{HEADER_START}user{HEADER_END}\n\n",
    f"{END_OF_TURN}{HEADER_START}assistant{HEADER_END}\n\n",
    (END_OF_TURN,),
    marked_slices=False,
)
CHATML_SYSTEM = _chatml("You are a helpful assistant.", end="<|endoftext|>")
_MINICPM4 = _chatml(end="</s>")
CHATML = Template(f"<s>{_MINICPM4.before}", _MINICPM4.after, _MINICPM4.stops, marked_slices=True)
QWEN3 = _chatml(opening="<think>\n\n</think>\n\n", end="<|endoftext|>")  # thinking is off, as published


def jinja_template(template: Template) -> str:
    """The template for any number of turns, as ``tokenizer_config.json`` and GGUF files hold it.

    What stands before the first user turn alone (the begin token, a system turn) does not come again.
    """
    opening = HEADER_START if HEADER_START in template.before else TURN_START if TURN_START in template.before else ""
    again = template.before[template.before.rindex(opening) :] if opening else template.before.removeprefix("<s>")
    first, later, after, stop = (
        json.dumps(t, ensure_ascii=False) for t in (template.before, again, template.after, template.stops[0])
    )
    return (
        "{%- for message in messages -%}{%- if message['role'] == 'user' -%}"
        f"{{{{- ({first} if loop.first else {later}) + message['content'] + {after} -}}}}"
        "{%- elif message['role'] == 'assistant' -%}"
        f"{{{{- message['content'] + {stop} -}}}}"
        "{%- endif -%}{%- endfor -%}"
    )


@dataclass(frozen=True)
class EncodedPrompt:
    """Tokens of one prompt.

    Attributes:
        input_ids: the tokens, ``[T]``.
        spans: per view, overview first, the half-open range of tokens that its vision tokens replace.
    """

    input_ids: list[int]
    spans: list[Span]


def image_placeholder(
    query_num: int, grid: tuple[int, int] | None, *, template: Template = LLAMA3, image_id: int | None = None
) -> str:
    """The text that stands for one image: its number, the overview, then `grid` (columns, rows) of slices by rows."""
    unknown = UNKNOWN * query_num
    view = IMAGE_START + unknown + IMAGE_END
    number = "" if image_id is None else f"{IMAGE_ID_START}{image_id}{IMAGE_ID_END}"
    if grid is None:
        return number + view
    columns, rows = grid
    if template.marked_slices:
        return number + view + "\n".join([(SLICE_START + unknown + SLICE_END) * columns] * rows)
    return number + view + SLICE_START + "\n".join([view * columns] * rows) + SLICE_END


def chat_text(question: str, placeholder: str = "", template: Template = LLAMA3) -> str:
    """One user turn up to where the assistant answers."""
    content = f"{placeholder}\n{question}" if placeholder else question
    return template.before + content + template.after


def encode_prompt(
    tokenizer: Tokenizer,
    question: str,
    *,
    query_num: int,
    grid: tuple[int, int] | None,
    template: Template = LLAMA3,
    image_id: int | None = None,
) -> EncodedPrompt:
    """Tokenize `question` about one image that was cut into `grid`."""
    text = chat_text(question, image_placeholder(query_num, grid, template=template, image_id=image_id), template)
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    marks = [(IMAGE_START, IMAGE_END)] + ([(SLICE_START, SLICE_END)] if template.marked_slices else [])
    opening, closing = ({tokenizer.token_to_id(pair[side]) for pair in marks} for side in (0, 1))
    starts = [index + 1 for index, token in enumerate(ids) if token in opening]
    ends = [index for index, token in enumerate(ids) if token in closing]
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


def stop_tokens(tokenizer: Tokenizer, template: Template = LLAMA3) -> list[int]:
    """The ids of the tokens that end an answer, the usual one first; one that the tokenizer lacks is left out."""
    ids = (tokenizer.token_to_id(stop) for stop in template.stops)
    return [token for token in ids if token is not None]


def decode_answer(tokenizer: Tokenizer, tokens: list[int], template: Template = LLAMA3) -> str:
    """Text of generated `tokens`, up to the end of the turn."""
    stops = stop_tokens(tokenizer, template)
    end = next((index for index, token in enumerate(tokens) if token in stops), len(tokens))
    return str(tokenizer.decode(tokens[:end], skip_special_tokens=True))
