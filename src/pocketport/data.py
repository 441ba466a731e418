"""Where a run's samples come from: the reference generator, a folder of images, or arrays in ``.npz`` files.

Samples are split once: calibration never sees what verification and the task score use.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias, TypeVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from PIL import Image

from pocketport.calibration.sources.rendered_text import PROMPT, RenderedText
from pocketport.calibration.storage import read_npz
from pocketport.compress.bundle import ModelBundle
from pocketport.compress.executors.ort_executor import OrtExecutor
from pocketport.compress.families.chat import ChatFactory, chain_feeds
from pocketport.compress.families.registry import chat_of, image_feeds_of
from pocketport.compress.graph import shape_of, static_shape
from pocketport.errors import InputError, UsageError
from pocketport.files import sha256_path
from pocketport.request import Request

Feeds: TypeAlias = Mapping[str, NDArray[np.generic]]
PromptSample: TypeAlias = tuple[Image.Image, str, str | None]
T = TypeVar("T")

CALIBRATION_SEED = 10_000
VERIFICATION_SEED = 15_000
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp"}
IMAGE_FORMATS = ("PNG", "JPEG", "BMP", "WEBP")
HELD_OUT_SHARE = 0.25


@dataclass(frozen=True)
class RunData:
    """A run's samples.

    Attributes:
        fingerprint: changes when any sample changes.
        calibration: makes (component, feeds) pairs for calibration.
        held_out: makes the same of samples that calibration does not see.
        count: calibration samples.
    """

    fingerprint: str
    calibration: Callable[[], Iterator[tuple[str, Feeds]]]
    held_out: Callable[[], Iterator[tuple[str, Feeds]]]
    count: int


def load_data(bundle: ModelBundle, request: Request) -> RunData:
    """The samples of a request.

    Raises:
        UsageError: no data was given for a model that has no generator of its own.
        InputError: the folder is empty, or an array does not fit the model's inputs.
    """
    chat = chat_of(bundle)
    if request.data is None:
        if chat is None:
            names = ", ".join(f"{name} {list(value.shape or ())}" for name, value in _inputs(bundle).items())
            raise UsageError(
                f"this model needs calibration data for its inputs: {names}",
                where="--data",
                fix="give an .npz file, or a folder of them, with one array per input"
                + (", or a folder of images" if image_feeds_of(bundle) else ""),
            )
        return _generated(bundle, chat, request)
    path = Path(request.data)
    if not path.exists():
        raise UsageError("no such file or folder", where=f"--data {path}", fix="check the path")
    if chat is not None:
        return _images(request, path, lambda images: _chain(bundle, chat, ((image, PROMPT, None) for image in images)))
    sees = image_feeds_of(bundle)
    if sees is not None and _image_files(path):
        return _images(request, path, lambda images: (feeds for image in images for feeds in sees(image)))
    return _arrays(bundle, request, path)


@dataclass(frozen=True)
class PromptSamples:
    """Images with a question each, to calibrate on.

    Attributes:
        samples: makes them anew: image, question and, where it is known, the right answer.
        count: how many there are.
        origin: where they come from, for reports.
        fingerprint: changes when any sample changes.
    """

    samples: Callable[[], Iterator[PromptSample]]
    count: int
    origin: str
    fingerprint: str


def prompt_samples(bundle: ModelBundle, request: Request) -> PromptSamples | None:
    """The images of a request: those of its folder, the reference model's own; None where it has none.

    Raises:
        InputError: a file is not a readable image.
    """
    if chat_of(bundle) is None:
        return None
    if request.data is None:
        if request.source != "reference":
            return None
        count = request.calibration_samples
        return PromptSamples(
            lambda: iter(_rendered(CALIBRATION_SEED + request.seed, count)), count, "rendered text",
            f"rendered-text/{request.seed}/{count}",
        )  # fmt: skip
    files = _image_files(Path(request.data))
    if not files:
        return None
    chosen, _ = _split(files, request.calibration_samples)
    return PromptSamples(
        lambda: ((image, PROMPT, None) for image in _opened(chosen)), len(chosen), f"images in {request.data}",
        f"images/{sha256_path(Path(request.data))}/{len(chosen)}",
    )  # fmt: skip


def _inputs(bundle: ModelBundle) -> Mapping[str, ir.Value]:
    """Every component's inputs; components share what they name alike.

    Raises:
        UsageError: two of them give one name to different things, as a chain of components does.
    """
    inputs: dict[str, ir.Value] = {}
    for component in bundle:
        for value in component.graph.graph.inputs:
            known = inputs.setdefault(str(value.name), value)
            if static_shape(known) != static_shape(value):
                raise UsageError(
                    f"its components take different arrays of the name {value.name}",
                    where=f"bundle {bundle.name}",
                    fix="quantize it to a format of weights, which takes token sequences",
                )
    return inputs


def _generated(bundle: ModelBundle, chat: ChatFactory, request: Request) -> RunData:
    count = request.calibration_samples
    return RunData(
        fingerprint=f"rendered-text/{request.seed}/{count}",
        calibration=lambda: _chain(bundle, chat, _rendered(CALIBRATION_SEED + request.seed, count)),
        held_out=lambda: _chain(bundle, chat, _rendered(VERIFICATION_SEED + request.seed, 4)),
        count=count,
    )


def _rendered(seed: int, count: int) -> list[PromptSample]:
    """The reference task's own images, questions and answers."""
    return [(s.image, s.prompt, s.answer) for s in RenderedText(seed=seed, fonts="train").take(count)]


def _image_files(path: Path) -> list[Path]:
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    return [file for file in files if file.suffix.lower() in IMAGE_SUFFIXES]


def _images(
    request: Request, path: Path, run: Callable[[Iterator[Image.Image]], Iterator[tuple[str, Feeds]]]
) -> RunData:
    files = _image_files(path)
    if not files:
        raise InputError(
            "the calibration folder holds no images",
            where=str(path),
            fix=f"put {', '.join(sorted(IMAGE_SUFFIXES))} files in it",
        )
    chosen, held = _split(files, request.calibration_samples)
    return RunData(
        fingerprint=f"images/{sha256_path(path)}/{len(chosen)}",
        calibration=lambda: run(_opened(chosen)),
        held_out=lambda: run(_opened(held[:4])),
        count=len(chosen),
    )


def _opened(paths: Sequence[Path]) -> Iterator[Image.Image]:
    return (open_image(path) for path in paths)


def open_image(path: Path) -> Image.Image:
    """A picture in RGB; InputError when it is missing, damaged, no picture, or one that would fill the memory."""
    try:
        with Image.open(path, formats=IMAGE_FORMATS) as image:
            return image.convert("RGB")
    except FileNotFoundError as error:
        raise InputError("there is no such file", where=str(path), fix="check the path") from error
    except (
        OSError,
        ValueError,
        SyntaxError,
        Image.DecompressionBombError,
    ) as error:  # Pillow's readers raise all of them
        raise InputError(f"not a readable image: {error}", where=str(path), fix="remove or replace the file") from error


def _chain(bundle: ModelBundle, chat: ChatFactory, samples: Iterable[PromptSample]) -> Iterator[tuple[str, Feeds]]:
    executors = {component.name: OrtExecutor(component.graph) for component in bundle}
    return chain_feeds(chat(executors, bundle.config, bundle.files), samples)


def _arrays(bundle: ModelBundle, request: Request, path: Path) -> RunData:
    files = sorted(path.rglob("*.npz")) if path.is_dir() else [path]
    if not files:
        raise InputError(
            "the calibration folder holds no .npz files",
            where=str(path),
            fix="save one array per model input with numpy.savez",
        )
    rows = [row for file in files for row in _rows(bundle, file)]
    if len(rows) < 2:
        raise InputError(
            f"{len(rows)} sample is not enough: some calibrate, others verify",
            where=str(path),
            fix="give at least 2 samples, better 32",
        )
    chosen, held = _split(rows, request.calibration_samples)

    def feeds(samples: Sequence[Feeds]) -> Iterator[tuple[str, Feeds]]:
        for sample in samples:
            for component in bundle:
                yield component.name, {str(v.name): sample[str(v.name)] for v in component.graph.graph.inputs}

    return RunData(
        fingerprint=f"arrays/{sha256_path(path)}/{len(chosen)}",
        calibration=lambda: feeds(chosen),
        held_out=lambda: feeds(held),
        count=len(chosen),
    )


def _rows(bundle: ModelBundle, file: Path) -> Iterator[Feeds]:
    """Cut a file's arrays [n, ...] into n feeds of the graphs' static shapes."""
    arrays = read_npz(file)
    inputs = _inputs(bundle)
    if missing := sorted(set(inputs) - set(arrays)):
        raise InputError(
            f"no array for the model's inputs {', '.join(missing)}; it has {', '.join(sorted(arrays)) or 'none'}",
            where=str(file), fix="name the arrays as the model's inputs",
        )  # fmt: skip
    counts = set()
    for name, value in inputs.items():
        shape = shape_of(value)
        array = arrays[name]
        if array.shape[1:] != shape[1:] and array.shape[1:] != shape:
            raise InputError(
                f"shape {array.shape} does not fit [n, {', '.join(map(str, shape[1:]))}]",
                where=f"{file}, array {name}",
                fix="reshape the array",
            )
        if not np.isfinite(np.asarray(array, np.float64)).all():
            raise InputError("it holds NaN or infinity", where=f"{file}, array {name}", fix="clean the array")
        counts.add(len(array))
    if len(counts) != 1:
        raise InputError(
            f"arrays of different lengths: {sorted(counts)}",
            where=str(file),
            fix="give every input the same number of samples",
        )
    for i in range(counts.pop()):
        yield {
            name: arrays[name][i].reshape(shape_of(value)).astype(value.dtype.numpy() if value.dtype else np.float32)
            for name, value in inputs.items()
        }


def _split(items: Sequence[T], calibration: int) -> tuple[Sequence[T], Sequence[T]]:
    """The first for calibration, the last (at least one, at most a quarter) held out."""
    held = max(1, int(len(items) * HELD_OUT_SHARE))
    return items[: -held or None][:calibration] or items[:1], items[-held:]
