"""A finished run on this machine: its artifacts opened with the settings that were found for them, and asked."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from tokenizers import Tokenizer

from pocketport.compress.bundle import ModelBundle
from pocketport.compress.families.chat import Generation, ImageChat
from pocketport.compress.families.registry import chat_of
from pocketport.errors import InputError, UsageError
from pocketport.run_document import ArtifactRecord, RunDocument, TargetRecord, folder_of, load_document
from pocketport.targets.configuration import DEFAULT_NAME, Configuration, load_configuration
from pocketport.targets.contract import Artifact, Executor, Target, TuningBackend
from pocketport.targets.registry import backend_for

UNFINISHED = "\ufffd"  # what a tokenizer shows of a character whose bytes are not all there


def host_target(document: RunDocument, directory: Path, wanted: str | None = None) -> TargetRecord:
    """The target of a run that this machine executes as it is.

    Args:
        document: the run.
        directory: where it lies, for errors.
        wanted: which of several; None: the first.

    Raises:
        UsageError: there is none, or it was not compiled whole.
    """
    known = [t for t in document.targets if isinstance(backend_for(Target.parse(t.id)), TuningBackend)]
    if wanted is not None:
        known = [t for t in known if Target.parse(t.id) == Target.parse(wanted)]
    if not known:
        raise UsageError(
            f"the run has no artifacts for {wanted or 'this machine'}; it has {', '.join(t.id for t in document.targets)}",
            where=str(directory), fix="port the model with --target x86",
        )  # fmt: skip
    found = known[0]
    if missing := [c.name for c in found.components if not c.artifacts]:
        raise UsageError(
            f"{found.id} was not compiled whole: {', '.join(missing)} is missing",
            where=str(directory), fix="see the diagnostics in its report, then port the model again",
        )  # fmt: skip
    return found


@dataclass(frozen=True)
class LocalModel:
    """A run's model, opened.

    Attributes:
        bundle: graphs, tokenizer and settings.
        executors: by component.
        configuration: by which they were opened; None: Pocketport's defaults.
        differences: of this host from the one where the configuration was found.
    """

    bundle: ModelBundle
    executors: Mapping[str, Executor]
    configuration: Configuration | None
    differences: tuple[str, ...] = ()

    def chat(self) -> ImageChat:
        """What answers about images; UsageError where the model doesn't."""
        factory = chat_of(self.bundle)
        if factory is None:
            raise UsageError(
                "the model does not answer about images", where=f"{self.bundle.name}, family {self.bundle.family}",
                fix="run a MiniCPM-V, Qwen-VL or SmolVLM",
            )  # fmt: skip
        return factory(self.executors, self.bundle.config, self.bundle.files)


@contextmanager
def open_model(directory: Path, target: str | None = None, configuration: Path | None = None) -> Iterator[LocalModel]:
    """Open a run's artifacts in this process, where a token costs no way between processes.

    Args:
        directory: the run's.
        target: which of its targets; None: the first that this machine executes.
        configuration: by ``pocketport tune``; None: ``x86.json`` in the run's directory, if it is there.

    Raises:
        UsageError: no such run, no artifacts for this machine, or a configuration of other artifacts.
        InputError: ``run.json``, the configuration or the bundle is damaged, or an artifact is not what the run made.
        ToolchainError: an engine refuses an artifact.
    """
    document = load_document(directory)
    record = host_target(document, directory, target)
    path = configuration or directory / DEFAULT_NAME
    settings = load_configuration(path) if configuration is not None or path.is_file() else None
    bundle = ModelBundle.load(directory / folder_of(record.id) / "pivot" / "bundle")
    with ExitStack() as stack:
        executors = {
            name: stack.enter_context(closing(executor))
            for name, executor in _executors(record, directory, settings, path)
        }
        backend = backend_for(Target.parse(record.id))
        assert isinstance(backend, TuningBackend)
        yield LocalModel(bundle, executors, settings, () if settings is None else backend.differences(settings))


def _executors(
    record: TargetRecord, directory: Path, settings: Configuration | None, path: Path
) -> Iterator[tuple[str, Executor]]:
    target = Target.parse(record.id)
    backend = backend_for(target)
    assert isinstance(backend, TuningBackend)
    for component in record.components:
        chosen = None
        if settings is not None:
            if component.name not in settings.components:
                raise UsageError(
                    f"it has nothing about {component.name}", where=str(path), fix="run `pocketport tune` on this run"
                )
            chosen = settings.components[component.name]
        if chosen is None:
            found = next(a for a in component.artifacts if a.primary)
            yield component.name, backend.execute(opened_artifact(found, directory), target, Path())
            continue
        matching = [a for a in component.artifacts if a.kind == chosen.kind and a.sha256 == chosen.sha256]
        if not matching:
            raise UsageError(
                f"it was found for another artifact of {component.name} than the run's",
                where=str(path), fix="run `pocketport tune` again",
            )  # fmt: skip
        yield component.name, backend.execute_with(opened_artifact(matching[0], directory), target, chosen.settings)


def opened_artifact(record: ArtifactRecord, directory: Path) -> Artifact:
    """An artifact of a run's document; InputError when it is not in the run's folder."""
    path = directory / record.path
    if not path.resolve().is_relative_to(directory.resolve()) or not path.exists():
        raise InputError("it is not in the run's folder", where=str(path), fix="port the model again")
    return Artifact(path, record.kind, record.bytes, record.sha256, record.primary, record.facts)


@dataclass(frozen=True)
class Speed:
    """What a person who waits sees.

    Attributes:
        image_ms: vision and connector for all views.
        first_token_ms: from the call to the first token.
        tokens_per_second: behind the first one; None where there is no second.
        total_ms: of the whole call.
    """

    image_ms: float
    first_token_ms: float
    tokens_per_second: float | None
    total_ms: float

    @classmethod
    def of(cls, read: Generation) -> "Speed":
        """From what the chat's clock says."""
        total = sum(read.seconds.values())
        image = sum(read.seconds.get(name, 0.0) for name in ("vision", "connector"))
        behind = total - read.first_token_seconds
        rate = (len(read.token_ids) - 1) / behind if len(read.token_ids) > 1 and behind > 0 else None
        return cls(1e3 * image, 1e3 * read.first_token_seconds, rate, 1e3 * total)


class TextStream:
    """Tokens become text as they come; a character whose bytes are not all there waits for them.

    Args:
        tokenizer: the model's.
        stops: tokens that end the answer and are not shown.
        write: is called with each new piece of text.

    Attributes:
        shown: characters written so far.
    """

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[int], write: Callable[[str], None]) -> None:
        self._tokenizer, self._stops, self._write = tokenizer, frozenset(stops), write
        self._tokens: list[int] = []
        self.shown = 0

    def __call__(self, token: int) -> None:
        """One more token."""
        if token in self._stops:
            return
        self._tokens.append(token)
        text = str(self._tokenizer.decode(self._tokens, skip_special_tokens=True))
        if not text.endswith(UNFINISHED) and len(text) > self.shown:
            self._write(text[self.shown :])
            self.shown = len(text)


def answer(
    model: LocalModel, image: Image.Image, prompt: str, max_tokens: int | None, write: Callable[[str], None]
) -> tuple[Generation, Speed]:
    """Ask a model about an image; `write` gets the text as it comes.

    Raises:
        UsageError: the model does not answer about images, or `max_tokens` exceeds its cache.
        InputError: the image or the prompt does not fit its static shapes.
    """
    chat = model.chat()
    stream = TextStream(chat.tokenizer, chat.stops, write)
    read = chat.read(image, prompt, max_tokens, stream)
    if rest := read.text[stream.shown :]:  # a character that never became whole
        write(rest)
    return read, Speed.of(read)
