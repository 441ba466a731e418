"""Training batches for the reference model, made by background processes."""

import multiprocessing as mp
import queue
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pocketport.calibration.sources.rendered_text import RenderedText, Sample, Style
from pocketport.compress.families.minicpmv.config import MiniCPMVConfig
from pocketport.compress.families.minicpmv.prompt import encode_prompt, load_tokenizer
from pocketport.compress.families.minicpmv.slicing import pack_views, plan_slices, slice_image
from pocketport.compress.reference import reference_dir

EXTRA_FONT_PACKAGES = (
    "font_roboto",
    "font_source_sans_pro",
    "font_source_serif_pro",
    "font_hanken_grotesk",
    "font_manrope",
    "font_caladea",
)
IGNORE = -100


def extra_fonts() -> tuple[Path, ...]:
    """Typefaces of the installed font packages (training only), without hairlines and duplicates."""
    found: dict[str, Path] = {}
    for package in EXTRA_FONT_PACKAGES:
        spec = find_spec(package)
        for folder in (spec.submodule_search_locations or []) if spec else []:
            for path in sorted(Path(folder).rglob("*.[ot]tf")):
                if not any(word in path.stem for word in ("Thin", "ExtraLight", "Variable")):
                    found.setdefault(path.stem, path)
    return tuple(found[name] for name in sorted(found))


def style_at(progress: float) -> Style:
    """The curriculum: short, clean and single-slice first; everything from a quarter of the time on."""
    if progress < 0.04:
        return Style(sliced=0.0, max_chars=10, max_angle=2.0, grain=0.3, min_px=18.0, max_px=44.0)
    if progress < 0.10:
        return Style(sliced=0.1, max_chars=16, max_angle=4.0, grain=0.6, min_px=15.0)
    if progress < 0.22:
        return Style(sliced=0.2, max_chars=20, max_angle=6.0, grain=1.0)
    return Style(stacked=0.25, max_chars=16)


@dataclass
class LabelledViews:
    """What the auxiliary losses need, per view.

    Attributes:
        ctc: the characters whose centres lie in the view (ASCII codes, reading order).
        slots: the character at each query's place on the line of text and the patch that holds its centre,
            ``[Q, 2]``; 0 and `IGNORE` if there is none (a space has no patch).
        dense: per patch the leftmost character, the second leftmost, the slot of the leftmost, ``[L, 3]``.
        weight: how much the view's losses count.
    """

    ctc: list[list[int]]
    slots: list[NDArray[np.int64]]
    dense: list[NDArray[np.int64]]
    weight: list[float]


def stretch(points: NDArray[np.float32], lines: NDArray[np.int64]) -> NDArray[np.float64]:
    """Where characters end along their text, lines laid end to end and stretched to 0 … 1.

    `points` [n, 2] are their centres in reading order and `lines` [n] their line numbers.
    """
    steps = np.linalg.norm(np.diff(points, axis=0), axis=1)
    same = lines[1:] == lines[:-1]
    usual = float(np.median(steps[same])) if same.any() else 1.0
    steps = np.where(same, steps, usual)
    before = np.concatenate([[usual], steps])
    after = np.concatenate([steps, [usual]])
    ends = np.cumsum((before + after) / 2)
    return np.asarray(ends / ends[-1], dtype=np.float64)


def label_views(sample: Sample, config: MiniCPMVConfig) -> LabelledViews:
    """Find every view's characters, and which of them each patch and each query should know."""
    plan = plan_slices(sample.image.size, config.slice_config)
    patch = config.slice_config.patch_size
    codes = np.frombuffer(sample.answer.encode("ascii"), dtype=np.uint8)
    lines = np.cumsum(codes == 10)
    queries = (np.arange(config.query_num) + 0.5) / config.query_num
    scale = np.asarray(plan.sizes[0]) / np.asarray(sample.image.size)
    frames = [(sample.centres * scale, plan.sizes[0])]
    legible = 1.0 if plan.grid is None else 0.7
    if plan.grid and plan.refined and plan.slice_size:
        refined = sample.centres * (np.asarray(plan.refined) / np.asarray(sample.image.size))
        for row in range(plan.grid[1]):
            for column in range(plan.grid[0]):
                corner = np.asarray([column * plan.slice_size[0], row * plan.slice_size[1]])
                frames.append((refined - corner, plan.slice_size))
    labels = LabelledViews([], [], [], [])
    for index, (points, (width, height)) in enumerate(frames):
        inside = (points >= 0).all(1) & (points[:, 0] < width) & (points[:, 1] < height)
        picked = np.flatnonzero(inside & (codes != 10))
        columns = width // patch
        labels.ctc.append([int(codes[i]) for i in picked])
        labels.weight.append(legible if index == 0 else 1.0)
        dense = np.full((columns * (height // patch), 3), IGNORE, dtype=np.int64)
        dense[:, :2] = 0
        ends = stretch(points[picked], lines[picked]) if len(picked) else np.zeros(0)
        slots = np.full((config.query_num, 2), (0, IGNORE), dtype=np.int64)
        if len(picked):
            shown = picked[np.searchsorted(ends, queries)]
            x, y = (points[shown] // patch).astype(np.int64).T
            slots[:, 0] = codes[shown]
            slots[:, 1] = np.where(codes[shown] == 32, IGNORE, y * columns + x)
        labels.slots.append(slots)
        middles = (np.concatenate([[0.0], ends[:-1]]) + ends) / 2
        rank = {int(i): int(m * config.query_num) for i, m in zip(picked, middles, strict=True)}
        ink = np.asarray([i for i in picked if codes[i] != 32], dtype=np.int64)
        for i in ink[np.argsort(points[ink, 0], kind="stable")] if len(ink) else ink:
            cell = int(points[i, 1] // patch) * columns + int(points[i, 0] // patch)
            if dense[cell, 0] == 0:
                dense[cell] = (codes[i], 0, rank[int(i)])
            elif dense[cell, 1] == 0:
                dense[cell, 1] = codes[i]
        labels.dense.append(dense)
    return labels


def stride_at(progress: float) -> int:
    """The language model sees one sample in this many; the eyes need more practice than the tongue."""
    return 3 if progress < 0.35 else 2 if progress < 0.75 else 1


def build_batch(samples: list[Sample], config: MiniCPMVConfig, tokenizer: Any, *, stride: int = 1) -> dict[str, Any]:
    """One batch of arrays: all views together, sequences in two groups (unsliced, sliced).

    A group is (indices of its views, ids, targets, is_vision); it holds every `stride`-th sample.
    """
    samples = sorted(samples, key=lambda s: s.image.width * s.image.height)
    views, per_sample, grids = [], [], []
    labels = LabelledViews([], [], [], [])
    for sample in samples:
        cut, grid = slice_image(sample.image, config.slice_config)
        views += cut
        per_sample.append(len(cut))
        grids.append(grid)
        own = label_views(sample, config)
        labels.ctc += own.ctc
        labels.slots += own.slots
        labels.dense += own.dense
        labels.weight += own.weight
    packed = pack_views(
        views,
        patch_size=config.slice_config.patch_size,
        buckets=config.vision_config.buckets_per_side,
        dim=config.hidden_size,
    )
    count, length = packed.valid.shape
    dense = np.full((count, length, 3), IGNORE, dtype=np.int64)
    for row, cells in enumerate(labels.dense):
        dense[row, : len(cells)] = cells
    groups = []
    ends = np.cumsum(per_sample)
    for sliced in (False, True):
        rows = [i for i, n in enumerate(per_sample) if (n > 1) == sliced][::stride]
        if not rows:
            continue
        encoded = [encode_prompt(tokenizer, samples[i].prompt, query_num=config.query_num, grid=grids[i]) for i in rows]
        answers = [[*samples[i].answer.encode("ascii"), config_eot(tokenizer)] for i in rows]
        lengths = [len(e.input_ids) + len(a) for e, a in zip(encoded, answers, strict=True)]
        ids = np.zeros((len(rows), max(lengths)), dtype=np.int64)
        target = np.full_like(ids, IGNORE)
        is_vision = np.zeros(ids.shape, dtype=np.bool_)
        for row, (prompt, answer) in enumerate(zip(encoded, answers, strict=True)):
            start = len(prompt.input_ids)
            ids[row, : start + len(answer)] = [*prompt.input_ids, *answer]
            target[row, start - 1 : start - 1 + len(answer)] = answer
            for begin, end in prompt.spans:
                is_vision[row, begin:end] = True
        picked = np.concatenate([np.arange(ends[i] - per_sample[i], ends[i]) for i in rows])
        groups.append((picked, ids, target, is_vision))
    return {
        "strip": np.rint(packed.strip * 127.5 + 127.5).astype(np.uint8),
        "position_ids": packed.position_ids,
        "positions": packed.positions,
        "valid": packed.valid,
        "dense": dense,
        "slots": np.stack(labels.slots),
        "ctc": np.asarray([c for codes in labels.ctc for c in codes], dtype=np.int64),
        "ctc_lengths": np.asarray([len(codes) for codes in labels.ctc], dtype=np.int64),
        "weight": np.asarray(labels.weight, dtype=np.float32),
        "groups": groups,
    }


def config_eot(tokenizer: Any) -> int:
    """The token that ends an answer."""
    return int(tokenizer.token_to_id("<|eot_id|>"))


def _work(seed: int, worker: int, workers: int, start: int, size: int, progress: Any, out: Any) -> None:
    torch.set_num_threads(1)
    config, tokenizer = MiniCPMVConfig.load(reference_dir()), load_tokenizer(reference_dir())
    fonts = extra_fonts()
    number = start + (worker - start) % workers
    while True:
        source = RenderedText(seed, "train", style_at(progress.value), fonts)
        samples = list(source.take(size, number * size))
        out.put(build_batch(samples, config, tokenizer, stride=stride_at(progress.value)))
        number += workers


class Batches:
    """Batches `start`, `start` + 1, … of `size` samples, in any order within the queue.

    `progress` (0 … 1) is read by the workers for the curriculum; set it as time goes on.
    """

    def __init__(
        self, seed: int, start: int, size: int, progress: float = 0.0, *, workers: int = 1, depth: int = 6
    ) -> None:
        context = mp.get_context("spawn")
        self.progress: Any = context.Value("d", progress)
        self._queue: Any = context.Queue(depth)
        self._processes = [
            context.Process(target=_work, args=(seed, w, workers, start, size, self.progress, self._queue), daemon=True)
            for w in range(workers)
        ]
        for process in self._processes:
            process.start()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        while True:
            try:
                yield self._queue.get(timeout=60)
            except queue.Empty:
                dead = [p.exitcode for p in self._processes if not p.is_alive()]
                if dead:
                    raise RuntimeError(f"data workers died with exit codes {dead}") from None


def to_torch(batch: dict[str, Any]) -> dict[str, Any]:
    """Arrays to tensors; pixels back to ±1."""
    out: dict[str, Any] = {k: torch.from_numpy(v) for k, v in batch.items() if isinstance(v, np.ndarray)}
    strip: Tensor = out["strip"].float()
    out["strip"] = strip.sub_(127.5).div_(127.5)
    out["groups"] = [tuple(torch.from_numpy(x) for x in group) for group in batch["groups"]]
    return out
