"""The checkpoint's own chat template, rendered once when it is opened: one user turn about one image."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from pocketport.compress.sources.folder import read_json_object
from pocketport.compress.sources.source import Source
from pocketport.errors import InputError

FILE, OLDER_FILE, TOKENIZER_CONFIG = "chat_template.jinja", "chat_template.json", "tokenizer_config.json"
MOST_CHARACTERS = 1 << 20
QUESTION = "\N{OBJECT REPLACEMENT CHARACTER}"  # stands for the question
SPECIAL = ("bos_token", "eos_token", "pad_token", "unk_token")


@dataclass(frozen=True)
class Template:
    """What stands around the image and the question.

    Attributes:
        before: the image.
        between: image and question.
        behind: the question, up to where the assistant answers.
    """

    before: str
    between: str
    behind: str

    def text(self, image: str, question: str) -> str:
        """The whole turn."""
        return self.before + image + self.between + question + self.behind

    def to_json(self) -> dict[str, str]:
        """As a bundle keeps it."""
        return asdict(self)


def template_of(source: Source, image_token: str) -> Template:
    """The template of a checkpoint, with thinking off, in jinja2's sandbox.

    Args:
        source: the checkpoint.
        image_token: what the template writes for an image.

    Raises:
        InputError: there is none, or it does not write one image and one question.
    """
    where = f"{source.path}, chat template"
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = _refused
    settings = read_json_object(source.files[TOKENIZER_CONFIG]) if TOKENIZER_CONFIG in source.files else {}
    content = [{"type": "image"}, {"type": "text", "text": QUESTION}]
    try:
        text = environment.from_string(_published(source, settings)).render(
            messages=[{"role": "user", "content": content}], add_generation_prompt=True, enable_thinking=False,
            **{key: _token(settings.get(key)) for key in SPECIAL},
        )  # fmt: skip
    except (TemplateError, ArithmeticError, TypeError, ValueError, LookupError, RecursionError) as error:
        raise InputError(f"it can't be rendered: {error}", where=where, fix="give the published template") from error
    before, image, rest = text.partition(image_token)
    between, question, behind = rest.partition(QUESTION)
    if not image or not question or image_token in rest or QUESTION in before + behind:
        raise InputError(
            f"it does not write {image_token} and the question, once each and in this order",
            where=where,
            fix="give the published template",
        )
    return Template(before, between, behind)


def _published(source: Source, settings: Mapping[str, Any]) -> str:
    """The template's text: in a file of its own, or in older checkpoints a value in another."""
    text: Any = settings.get("chat_template")
    if OLDER_FILE in source.files:
        text = read_json_object(source.files[OLDER_FILE]).get("chat_template")
    if FILE in source.files:
        try:
            text = source.files[FILE].read_text("utf-8")
        except ValueError as error:
            raise InputError(f"not text: {error}", where=str(source.files[FILE]), fix="download it again") from error
    if not isinstance(text, str) or len(text) > MOST_CHARACTERS:
        raise InputError("it has no chat template", where=str(source.path), fix=f"copy {FILE} beside the weights")
    return text


def _token(value: Any) -> Any:
    return value.get("content") if isinstance(value, Mapping) else value


def _refused(message: object) -> None:
    raise TemplateError(str(message))
