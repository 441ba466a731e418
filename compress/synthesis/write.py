"""Write a synthetic checkpoint: configuration, tokenizer, and weights as a stream."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from pocketport.compress.safetensors_writer import TensorEntry, write_checkpoint
from pocketport.compress.synthesis.layout import layout_of
from pocketport.compress.synthesis.preset import Preset, load_preset, scaled
from pocketport.compress.synthesis.tokenizer import synthetic_tokenizer
from pocketport.compress.synthesis.weights import Run, random_runs
from pocketport.errors import UsageError
from pocketport.files import atomic_directory, write_json

THREADS = 2
AHEAD = 4  # runs computed while one is written


def synthesize(
    preset: str,
    directory: Path,
    *,
    seed: int = 0,
    scale: float = 1.0,
    layers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Path]:
    """Write the checkpoint of a preset with random bfloat16 weights; the same arguments give the same bytes.

    Args:
        preset: its name.
        directory: the checkpoint's folder, new or empty.
        seed: of the weights.
        scale: factor on widths, depth and vocabulary, see `scaled`.
        layers: at most so many layers in every stack.
        progress: called with the tensors written and their number.

    Returns:
        The files of the folder.

    Raises:
        UsageError: no such preset, a wrong scale, or a folder that holds something already.
    """
    return write_preset(scaled(load_preset(preset), scale, layers), directory, seed=seed, progress=progress)


def write_preset(
    chosen: Preset, directory: Path, *, seed: int = 0, progress: Callable[[int, int], None] | None = None
) -> list[Path]:
    """Write the checkpoint that a preset describes; see `synthesize`."""
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise UsageError("there is something in it already", where=str(directory), fix="give a new folder")
    shapes = layout_of(chosen.config)
    entries = [TensorEntry(name, "BF16", shape) for name, shape in shapes.items()]
    depth = _depth(chosen.config)
    done = iter(range(1, len(entries) + 1))
    with atomic_directory(directory) as temporary, ThreadPoolExecutor(THREADS) as pool:

        def runs(entry: TensorEntry) -> Iterator[NDArray[Any]]:
            yield from _ahead(pool, random_runs(entry.name, entry.shape, seed=seed, layers=depth))
            if progress:
                progress(next(done), len(entries))

        write_checkpoint(temporary, entries, runs)
        write_small_files(chosen, temporary)
    return sorted(directory.iterdir())


def write_small_files(chosen: Preset, folder: Path) -> None:
    """Everything of a preset's checkpoint but its weights: configuration, processor and tokenizer."""
    write_json(folder / "config.json", dict(chosen.config))
    for name, document in chosen.files.items():
        write_json(folder / name, document)
    if chosen.special_tokens:
        tokenizer = synthetic_tokenizer(_vocabulary(chosen.config), chosen.special_tokens)
        tokenizer.save(str(folder / "tokenizer.json"))


def _ahead(pool: ThreadPoolExecutor, runs: Iterable[Run]) -> Iterator[NDArray[Any]]:
    """Results in order, a few of them computed ahead."""
    waiting: deque[Future[NDArray[Any]]] = deque()
    for run in runs:
        waiting.append(pool.submit(run))
        if len(waiting) > AHEAD:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _text(config: Any) -> Any:
    return config.get("text_config", config)


def _depth(config: Any) -> int:
    text = _text(config)
    return int(text.get("num_hidden_layers") or text.get("encoder_layers") or 1)


def _vocabulary(config: Any) -> int:
    return int(_text(config)["vocab_size"])
