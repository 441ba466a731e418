"""The settings under which a model runs best on this machine: looked for, and written as ``x86.json``."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from pocketport.calibration.storage import read_npz
from pocketport.compress.cache.float_cache import CacheConversion
from pocketport.compress.graph import load_graph, static_shape
from pocketport.data import Feeds
from pocketport.errors import InputError, UsageError
from pocketport.request import Request
from pocketport.run_document import folder_of, load_document
from pocketport.running import host_target, opened_artifact
from pocketport.stages.condition import condition
from pocketport.stages.context import Context, Progress
from pocketport.stages.held_out import collect_held_out, load_held_out
from pocketport.stages.ingest import ingest
from pocketport.store import Store
from pocketport.targets.configuration import Configuration
from pocketport.targets.contract import Target, TuneJob, TuningBackend
from pocketport.targets.registry import backend_for

HOST = Target("x86", "generic")
MAIN = "main"


def tune_file(
    path: Path, seconds: float, shapes: Mapping[str, Sequence[int]], data: Path | None, progress: Progress
) -> Configuration:
    """Tune an ONNX file as it is, float or quantized.

    Args:
        path: the file.
        seconds: for the search.
        shapes: of inputs whose dimensions the file leaves open.
        data: an ``.npz`` file with an array for each input, of which the first entry is used; None: arbitrary inputs.
        progress: is told what is under way.

    Raises:
        InputError: the file or the data is damaged.
        UsageError: a shape is open or does not fit, an array is missing, or the time is too short.
    """
    declared = _shapes(path, shapes)
    feeds = None if data is None else _first(path, declared, data)
    job = TuneJob(MAIN, {"onnx": path, "openvino-ir": path}, path, feeds, declared)
    found = _tuned([job], HOST, seconds, progress)
    found.shapes = {name: list(shape) for name, shape in declared.items()}
    found.components[MAIN].artifact = path.name
    return found


def tune_gguf(
    model: Path, programs: Path | None, tokens: tuple[int, int], seconds: float, progress: Progress
) -> Configuration:
    """Tune llama.cpp for a GGUF file, prompts and answers apart.

    Args:
        model: the file.
        programs: the folder of llama.cpp's programs; None: the PATH.
        tokens: of a prompt and of an answer.
        seconds: for the search.
        progress: is told what is under way.

    Raises:
        UsageError: there is no such file or no llama.cpp, or the time is too short.
        ToolchainError: llama.cpp does not run the file.
    """
    if not model.is_file():
        raise UsageError("no such file", where=str(model), fix="check the path")
    backend = backend_for(HOST)
    assert isinstance(backend, TuningBackend)
    return backend.tune_gguf(
        model, programs, tokens, seconds, lambda phase: progress.start(f"tune {phase}", f"tune {phase}", None)
    )


def tune_run(
    directory: Path, target: str | None, seconds: float, cache: Path | None, progress: Progress
) -> Configuration:
    """Tune a run's components, on its own held-out samples.

    Raises:
        UsageError: no such run, no artifacts for this machine, or the time is too short.
        InputError: ``run.json`` is damaged.
    """
    document = load_document(directory)
    record = host_target(document, directory, target)
    context = Context(Request.load(directory), Store(cache), directory, progress)
    held_out = collect_held_out(context, condition(context, ingest(context)))
    jobs: list[TuneJob] = []
    paths: dict[tuple[str, str], str] = {}
    for component in record.components:
        artifacts = {a.kind: opened_artifact(a, directory).path for a in component.artifacts}
        paths |= {(component.name, a.kind): a.path for a in component.artifacts}
        pivot = directory / folder_of(record.id) / "pivot" / "bundle" / f"{component.name}.onnx"
        feeds = CacheConversion.of(load_graph(pivot)).stored(load_held_out(held_out, component.name).feeds[0])
        jobs.append(TuneJob(component.name, artifacts, pivot, feeds))
    found = _tuned(jobs, Target.parse(record.id), seconds, progress)
    for name, chosen in found.components.items():
        chosen.artifact = paths[name, chosen.kind]
    return found


def _tuned(jobs: Sequence[TuneJob], target: Target, seconds: float, progress: Progress) -> Configuration:
    backend = backend_for(target)
    assert isinstance(backend, TuningBackend)
    waiting = [job.component for job in jobs]
    _begin(progress, waiting)

    def done(component: str) -> None:
        progress.finish(f"tune {component}", "")
        _begin(progress, waiting[waiting.index(component) + 1 :])

    return backend.tune(jobs, target, seconds, done)


def _begin(progress: Progress, waiting: Sequence[str]) -> None:
    if waiting:
        progress.start(f"tune {waiting[0]}", f"tune {waiting[0]}", None)


def _shapes(path: Path, shapes: Mapping[str, Sequence[int]]) -> dict[str, Sequence[int]]:
    """The shapes of a file's open inputs."""
    inputs = {str(v.name): v for v in load_graph(path).graph.inputs}
    if unknown := [name for name in shapes if name not in inputs]:
        raise UsageError(
            f"no input {unknown[0]!r}; it has {', '.join(inputs)}", where=f"{path}, --shape", fix="name one of those"
        )
    for name, value in inputs.items():
        declared = [d if isinstance(d, int) and d > 0 else None for d in value.shape or ()]
        given = list(shapes.get(name, declared))
        fits = len(given) == len(declared) and all(d in (None, g) for d, g in zip(declared, given, strict=True))
        if None in given or not fits:
            shown = ",".join("?" if d is None else str(d) for d in declared)
            raise UsageError(
                f"its shape is [{shown}], given is [{','.join('?' if d is None else str(d) for d in given)}]",
                where=f"{path}, input {name}", fix=f"say --shape {name}=… with every dimension",
            )  # fmt: skip
    return {name: list(shapes[name]) for name in shapes if static_shape(inputs[name]) is None}


def _first(path: Path, shapes: Mapping[str, Sequence[int]], data: Path) -> Feeds:
    """The first entry of each array, in the shape and dtype of its input."""
    arrays, feeds = read_npz(data), {}
    for value in load_graph(path).graph.inputs:
        name = str(value.name)
        shape = tuple(shapes.get(name) or static_shape(value) or ())
        if name not in arrays:
            raise UsageError(f"no array for the input {name}", where=str(data), fix="name the arrays as the inputs")
        array = arrays[name]
        one = array if array.shape == shape else array[:1] if array[:1].shape == shape else array[0]
        if one.shape != shape or value.dtype is None:
            raise InputError(
                f"shape {array.shape} does not fit {list(shape)}",
                where=f"{data}, array {name}",
                fix="reshape the array",
            )
        feeds[name] = one.astype(value.dtype.numpy())
    return feeds
