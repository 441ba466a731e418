"""The chat template and the placeholders of tiles, as text and as tokens."""

from pathlib import Path

from tokenizers import Tokenizer

from pocketport.compress.families.chat import Span
from pocketport.compress.families.idefics3.config import Idefics3Config
from pocketport.compress.families.idefics3.tiles import Size
from pocketport.errors import InputError

AROUND, IMAGE, WHOLE = "<fake_token_around_image>", "<image>", "<global-img>"
END = "<end_of_utterance>"


def image_text(grid: Size, tokens: int) -> str:
    """What stands for an image: its tiles by rows, then the whole of it.

    Args:
        grid: (rows, columns), (0, 0) for an image that is not cut.
        tokens: vision tokens of each tile.
    """
    places, (rows, columns) = IMAGE * tokens, grid
    lines = (
        "".join(f"{AROUND}<row_{row + 1}_col_{column + 1}>{places}" for column in range(columns)) + "\n"
        for row in range(rows)
    )
    return "".join(lines) + ("\n" if rows else "") + f"{AROUND}{WHOLE}{places}{AROUND}"


def chat_text(opening: str, question: str, image: str) -> str:
    """One user turn about an image up to where the assistant answers."""
    return f"{opening}User:{image}{question}{END}\nAssistant:"


def encode_prompt(
    tokenizer: Tokenizer, config: Idefics3Config, question: str, grid: Size, tokens: int
) -> tuple[list[int], list[Span]]:
    """Tokenize `question` about an image that was cut into `grid`.

    Returns:
        The tokens, and per tile the half-open range of those that its vision tokens replace.

    Raises:
        InputError: the question holds the image's token.
    """
    text = chat_text(str(tokenizer.id_to_token(config.opening_token)), question, image_text(grid, tokens))
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    places = [index for index, token in enumerate(ids) if token == config.image_token]
    if len(places) != (grid[0] * grid[1] + 1) * tokens:
        raise InputError(
            f"it holds the token {IMAGE}, which stands for an image", where="question", fix="take it out of the text"
        )
    return ids, [(first, first + tokens) for first in places[::tokens]]


def load_tokenizer(path: Path, config: Idefics3Config) -> Tokenizer:
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
    fix = "give the tokenizer.json that belongs to this checkpoint"
    if tokenizer.token_to_id(IMAGE) != config.image_token:
        found = tokenizer.token_to_id(IMAGE)
        raise InputError(f"its {IMAGE} is {found}, config.json says {config.image_token}", where=str(path), fix=fix)
    for token in (AROUND, END):
        if tokenizer.token_to_id(token) is None:
            raise InputError(f"it has no {token} token", where=str(path), fix=fix)
    if tokenizer.id_to_token(config.opening_token) is None:
        raise InputError(f"it has no token {config.opening_token}, which opens a prompt", where=str(path), fix=fix)
    return tokenizer
