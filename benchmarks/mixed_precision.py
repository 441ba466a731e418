"""A scheme for each layer against one for all: quality by bytes, and the bytes saved at equal quality.

``python benchmarks/mixed_precision.py [MODEL] [--format gptq | --target apple/a18-pro] [--recipe gptq] [--mixed-recipe FILE]
[--bits 2.5 3 3.5] [--no-confirm] [--mixtures q4_k_s q4_k_m] [--files THEIRS.gguf] [--report TEXT] [--json FILE]``

MODEL is ``reference`` (the default: its own images and answers), ``smollm2`` (SmolLM2-135M and the texts of
`llm_weights.py`) or a checkpoint's folder. In a format the language model alone is searched; on a target the whole model,
vision and connector too, by the answers that its pivots give. Quality is the mean divergence of the predictions from the float model's, with
perplexity where there is text. Errors are measured, and the best of the error models' allocations is chosen, on one part
of the data; both fronts are reported on another (`--report`, a text; without one the standard library's docstrings).
Uniform schemes have the same algorithm and calibration data; so have the ``--mixtures`` of a format, its variants whose
types are laid down by hand. ``--files`` are others' GGUF files of the same model. Both are compared as uniform schemes are.

Uniform schemes are those of ``--recipe``; mixed points may have another one, which splits layers so that parts of them have
schemes of their own (``--mixed-recipe``; `conditioning.split_hidden`).

A uniform scheme's saving is what the mixed front takes less at its divergence: the bytes between neighbouring mixed
points are interpolated linearly in the logarithm of the divergence. Schemes that a smaller uniform one is as good as are
left out of the median. Intervals are 90 % of resampled samples (Efron's bootstrap), the same ones for every point. Bytes
are those of the layers that are searched; the whole model's are beside them. A target's components each hold their weights,
the language model's are in prefill and in decode; with ``--once`` what is searched counts once where several components hold it,
as in a file that they share. Everything made is in the work folder's
cache, so that the benchmark can be run piece by piece.
"""

import argparse
import importlib
import inspect
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from llama_cpp import smollm2
from llm_weights import text_tokens
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor

from pocketport.commands.console import BarProgress, out, table
from pocketport.compress.mixed_precision.allocation import Allocation
from pocketport.compress.mixed_precision.checkpoint import Dequantized
from pocketport.compress.mixed_precision.next_token import Quality
from pocketport.compress.mixed_precision.target import TargetLayers
from pocketport.compress.planning.weights import stored_bytes
from pocketport.compress.quantized_weights import QuantizedWeights
from pocketport.compress.sources.open import open_source
from pocketport.files import write_json
from pocketport.request import Request
from pocketport.stages.context import Context
from pocketport.stages.image_sequences import Answers
from pocketport.stages.search import MEASURED, FormatSearch
from pocketport.stages.search_target import TargetSearch
from pocketport.stages.searched import Budget
from pocketport.stages.sequences import Sequences, sequences_for
from pocketport.stages.weights import plan_formats, quantize_format
from pocketport.store import Store

SCHEMES = (
    "w2b128fp16", "w2b64fp16", "w2b32fp16", "w3cfp16", "w3b128fp16", "w3b64fp16", "w3b32fp16", "w4cfp16", "w4b128fp16",
    "w4b64fp16", "w4b32fp16", "w5cfp16", "w5b128fp16", "w5b64fp16", "w5b32fp16", "w6cfp16", "w6b64fp16", "w8cfp16",
)  # fmt: skip
STEP = 1.06  # from one budget to the next, where none are named
MOST_BITS = 6.0  # of those: above lies little but 8 bits
REPORT_SEED = 7_000
RESAMPLED = 1_000
QUANTILES = (0.05, 0.95)
LANGUAGE = "llm."  # before the names of a multimodal model's language model
DOCUMENTED = (
    "argparse", "asyncio", "collections", "csv", "datetime", "decimal", "difflib", "fractions", "functools", "heapq", "inspect",
    "itertools", "json", "logging", "pathlib", "random", "shutil", "socket", "statistics", "string", "subprocess", "tarfile",
    "textwrap", "threading", "unittest", "zipfile",
)  # fmt: skip

Floats = NDArray[np.float64]


@dataclass
class Point:
    """One allocation.

    Attributes:
        name: the scheme, the mixture or the file's name, or ``mixed`` with its error model.
        bytes: of the layers that are searched.
        bits: mean of their weights, scales included.
        model_bytes: of the whole model.
        divergence: on the reported data.
        perplexity: on it, where it is text.
        sums: of the divergence, of each sample.
        counts: predictions of each sample.
        saved: of all but mixed points, the share of its bytes that the mixed front does without at its divergence.
        interval: of that.
    """

    name: str
    bytes: float
    bits: float
    model_bytes: float
    divergence: float
    perplexity: float | None
    sums: Sequence[float]
    counts: Sequence[int]
    saved: float | None = None
    interval: tuple[float, float] | None = None


def sequences_of(work: Path, role: str, tokenizer: Tokenizer, count: int, length: int) -> str:
    """A file with sequences from all over one of `llm_weights.TEXTS`."""
    tokens = text_tokens(work, role, tokenizer)
    starts = np.random.default_rng(0).permutation(np.linspace(0, len(tokens) - length, count).astype(np.int64))
    path = work / f"mixed-precision-{role}-{count}x{length}.npz"
    np.savez(path, input_ids=tokens[starts[:, None] + np.arange(length)])
    return str(path)


def docstrings() -> str:
    """What Python's standard library says of itself: English that is not its language reference."""
    texts = []
    for name in DOCUMENTED:
        module = importlib.import_module(name)
        texts += [inspect.getdoc(member) or "" for _, member in sorted(inspect.getmembers(module))]
    return "\n\n".join(dict.fromkeys(t for t in texts if len(t) > 200))


def reported(search: FormatSearch | TargetSearch, report: Path | None, count: int) -> Sequences | Answers:
    """The data of the reported figures."""
    if isinstance(search, TargetSearch):
        return search.answers.data(count, 1, REPORT_SEED)[0]
    if isinstance(search.measured, Answers):
        request = search.context.request.model_copy(update={"seed": REPORT_SEED, "calibration_samples": count})
        return search.data(request, count)[0]
    with tempfile.TemporaryDirectory() as folder:
        path = report or Path(folder) / "docstrings.txt"
        if report is None:
            path.write_text(docstrings(), "utf-8")
        return sequences_for(search.bundle, str(path), count, search.length, REPORT_SEED)


def point(name: str, search: FormatSearch | TargetSearch, cost: float, quality: Quality) -> Point:
    """As it was measured; it is shown at once."""
    found = search.found
    made = Point(
        name, cost, 8 * cost / found.elements, cost + found.fixed_bytes, quality.divergence,
        quality.figures.get("perplexity"), quality.sums, quality.counts,
    )  # fmt: skip
    out.print(f"{made.name}: {made.bits:.3f} bits, divergence {made.divergence:.6f}")
    return made


def uniform(
    search: FormatSearch | TargetSearch, schemes: Sequence[str] | None, data: Sequences | Answers
) -> list[Point]:
    """Each scheme for all layers, those that every layer takes."""
    points, layers = [], search.found.layers
    for scheme in schemes or search.found.plans:
        if all(scheme in layer.costs for layer in layers):
            cost = sum(layer.costs[scheme] for layer in layers)
            rules = Allocation(scheme, {layer.name: scheme for layer in layers}, cost, 0.0).rules(layers)
            points.append(point(scheme, search, cost, search.quality(rules, data)))
    return sorted(points, key=lambda p: p.bytes)


def searched_weights(search: FormatSearch) -> list[str]:
    """Names of the weights that a scheme is chosen for."""
    return [weight for layer in search.found.layers for weight in layer.weights]


def mixtures(search: FormatSearch, names: Sequence[str], data: Sequences | Answers) -> list[Point]:
    """Variants of the format, by the same recipe."""
    points, names_searched, request = [], searched_weights(search), search.context.request
    for name in names:
        form = f"{request.formats[0].partition(':')[0]}:{name}"
        (job,) = plan_formats(request.model_copy(update={"formats": [form]}))
        weights = Dequantized(QuantizedWeights(quantize_format(search.context, job).path), names_searched)
        cost = sum(plan.bytes_after for plan in job.plans if plan.tensor in names_searched)
        points.append(point(form, search, cost, search.quality_of(weights, data)))
    return sorted(points, key=lambda p: p.bytes)


def of_file(search: FormatSearch, path: Path) -> tuple[dict[str, Tensor], int]:
    """The searched weights as a GGUF file of the language model has them, and the bytes that they take there."""
    tensors = open_source(path).tensors
    found = {name: tensors[name.removeprefix(LANGUAGE)] for name in searched_weights(search)}
    weights = {name: torch.from_numpy(tensor.numpy().copy()) for name, tensor in found.items()}
    return weights, sum(stored_bytes(tensor) for tensor in found.values())


def files(search: FormatSearch, paths: Sequence[Path], data: Sequences | Answers) -> list[Point]:
    """Others' files."""
    points = []
    for path in paths:
        weights, cost = of_file(search, path)
        points.append(point(path.stem, search, cost, search.quality_of(weights, data)))
    return sorted(points, key=lambda p: p.bytes)


def mixed(
    search: FormatSearch | TargetSearch, bits: Sequence[float], data: Sequences | Answers, *, confirm: bool,
    exchanges: Sequence[int],
) -> list[Point]:  # fmt: skip
    """The best measured allocation within each budget, or where none is measured the best by the model `loss`."""
    points = []
    for budget, rounds in zip(bits, exchanges, strict=True):
        if isinstance(search, TargetSearch):
            searched = search.search(Budget(bits=budget), confirm=confirm)
        else:
            searched = search.search(Budget(bits=budget), confirm=confirm, exchanges=rounds)
        best = searched.best
        name = f"mixed ({best.allocation.model})"
        points.append(point(name, search, searched.bytes_of(best), search.quality(best.rules, data)))
    return sorted(points, key=lambda p: p.bytes)


def counted_once(found: TargetLayers) -> TargetLayers:
    """The same with the bytes of one component for each layer, as many as hold it."""
    layers = []
    for layer in found.layers:
        held = len({node.component for node in layer.nodes})
        costs = {scheme: cost / held for scheme, cost in layer.costs.items()}
        layers.append(replace(layer, elements=layer.elements // held, costs=costs))
    return replace(found, layers=tuple(layers))


def steps(points: list[Point]) -> list[float]:
    """Budgets in bits, from the smallest uniform scheme's on."""
    first, last = points[0].bits, min(points[-1].bits, MOST_BITS)
    count = int(np.log(last / first) / np.log(STEP)) + 1
    return [float(first * STEP**i) for i in range(count)]


def front(sizes: Floats, divergences: Floats) -> NDArray[np.bool_]:
    """Which points, by rising size, no smaller one is as good as."""
    least = np.minimum.accumulate(divergences)
    return np.concatenate([[True], divergences[1:] < least[:-1]])


def savings(plain: Floats, sizes: Floats, mixed_sizes: Floats, mixed_divergences: Floats) -> Floats:
    """Of each uniform scheme the share saved, NaN where the mixed front does not reach its divergence."""
    kept = front(mixed_sizes, mixed_divergences)
    known, bytes_ = -np.log(mixed_divergences[kept]), mixed_sizes[kept]
    taken = np.interp(-np.log(plain), known, bytes_, left=np.nan, right=np.nan)
    return np.asarray(1 - taken / sizes)


def compare(plain: list[Point], points: list[Point]) -> tuple[float, tuple[float, float]]:
    """Put the savings with their intervals into the uniform points; their median, and its interval."""
    sizes, mixed_sizes = (np.array([p.bytes for p in part]) for part in (plain, points))
    sums, counts = np.array([p.sums for p in (*plain, *points)]), np.array(plain[0].counts, np.float64)
    drawn = np.random.default_rng(0).multinomial(len(counts), np.full(len(counts), 1 / len(counts)), RESAMPLED)

    def saved(weights: Floats) -> Floats:
        divergences = sums @ weights / (counts @ weights)
        return savings(divergences[: len(plain)], sizes, mixed_sizes, divergences[len(plain) :])

    own = saved(np.ones(len(counts)))
    resampled = np.stack([saved(weights.astype(np.float64)) for weights in drawn])
    for p, share, shares in zip(plain, own, resampled.T, strict=True):
        if np.isfinite(share):
            p.saved, p.interval = float(share), _interval(shares)
    counted = front(sizes, np.array([p.divergence for p in plain])) & np.isfinite(own)
    return float(np.median(own[counted])), _interval(np.nanmedian(resampled[:, counted], axis=1))


def _interval(values: Floats) -> tuple[float, float]:
    low, high = np.nanquantile(values, QUANTILES)
    return float(low), float(high)


def main() -> None:
    """Measure both fronts, print the table, write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="reference")
    parser.add_argument("--format", help="default: gptq, where there is no --target")
    parser.add_argument("--target", help="vendor/soc, rather than a format")
    parser.add_argument("--recipe", default="gptq")
    parser.add_argument("--mixed-recipe", help="of mixed points on a target (default: that of uniform schemes)")
    parser.add_argument("--once", action="store_true", help="count weights of several components of a target once")
    parser.add_argument("--schemes", help="default: those of `SCHEMES`; of gguf and targets all that a search knows")
    parser.add_argument("--uniform", nargs="+", help="those of them that are measured for all layers")
    parser.add_argument(
        "--joined", action=argparse.BooleanOptionalAction, help="one scheme for layers with a common input"
    )
    parser.add_argument("--confirm", action=argparse.BooleanOptionalAction, default=True, help="as `pocketport search`")
    parser.add_argument(
        "--exchanges", type=int, nargs="+", default=[0], help="rounds, as `pocketport search`: of all or each budget"
    )
    parser.add_argument("--bits", type=float, nargs="+", help="budgets of the mixed points")
    parser.add_argument("--mixtures", nargs="+", default=[], help="variants of the format beside them")
    parser.add_argument("--files", nargs="+", type=Path, default=[], help="others' GGUF files of the language model")
    parser.add_argument("--data", help="the text to calibrate on")
    parser.add_argument("--report", type=Path, help="the text to report on")
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--error-samples", type=int, help="that errors are taken from (default: as many)")
    parser.add_argument("--measured-samples", type=int, help="that allocations are measured on, as `pocketport search`")
    parser.add_argument("--report-samples", type=int, default=128)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--work", type=Path, default=Path("build/mixed-precision"))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if len(options.exchanges) not in (1, len(options.bits or [])):
        parser.error("--exchanges takes one number, or one for each of --bits")
    if options.target and (options.format or options.mixtures or options.files or any(options.exchanges)):
        parser.error("--format, --mixtures, --files and --exchanges are not for a --target")
    if (options.mixed_recipe or options.once) and not options.target:
        parser.error("--mixed-recipe and --once are for a --target")
    form = options.format or ("" if options.target else "gptq")
    source = options.model
    if source == "smollm2":
        options.work.mkdir(parents=True, exist_ok=True)
        source = str(smollm2(options.work))
        tokenizer = Tokenizer.from_file(str(Path(source) / "tokenizer.json"))
        sizes = {
            "calibration": max(options.samples, options.error_samples or 0) + (options.measured_samples or MEASURED),
            "report": options.report_samples,
        }
        options.data, report = (
            sequences_of(options.work, role, tokenizer, count, options.length) for role, count in sizes.items()
        )
        options.report = Path(report)
    request = Request(
        source=source, formats=[form] if form else [], targets=[options.target] if options.target else [],
        recipe=options.recipe, data=options.data, sequence_length=options.length, calibration_samples=options.samples,
    )  # fmt: skip
    with BarProgress() as progress, tempfile.TemporaryDirectory() as folder:
        store = Store(options.work / "cache")
        context = Context(request, store, Path(folder), progress)
        chosen = options.schemes or (",".join(SCHEMES) if form and not form.startswith("gguf") else None)
        names = chosen and chosen.split(",")
        search: FormatSearch | TargetSearch
        mixing: FormatSearch | TargetSearch
        if options.target:
            other = request.model_copy(update={"recipe": options.mixed_recipe or options.recipe})
            search, mixing = (
                TargetSearch(
                    Context(own, store, Path(folder), progress), names, objective="answers",
                    samples=options.error_samples, measured=options.measured_samples,
                )
                for own in (request, other)
            )  # fmt: skip
            if options.once:
                search.found, mixing.found = counted_once(search.found), counted_once(mixing.found)
        else:
            search = mixing = FormatSearch(
                context, names, joined=options.joined, samples=options.error_samples, measured=options.measured_samples
            )
        data = reported(search, options.report, options.report_samples)
        plain = uniform(search, options.uniform, data)
        bits = options.bits or steps(plain)
        exchanges = options.exchanges * (len(bits) if len(options.exchanges) == 1 else 1)
        points = mixed(mixing, bits, data, confirm=options.confirm, exchanges=exchanges)
        others = {"uniform schemes": plain}
        if isinstance(search, FormatSearch):
            others |= {
                "mixtures": mixtures(search, options.mixtures, data),
                "others' files": files(search, options.files, data),
            }
    medians = {kind: compare(part, points) for kind, part in others.items() if part}
    every = sorted([*points, *chain(*others.values())], key=lambda p: p.bytes)
    print_points(f"{options.model}, {options.target or form}, {options.recipe}", every)
    for kind, (median, interval) in medians.items():
        out.print(
            f"bytes saved at equal quality, against {kind}: median {median:.1%} ({interval[0]:.1%} to {interval[1]:.1%})"
        )
    if options.json:
        compared = {kind: {"median": m, "interval": i} for kind, (m, i) in medians.items()}
        fronts = {kind: [asdict(p) for p in part] for kind, part in {**others, "mixed": points}.items()}
        write_json(options.json, {"model": options.model, "saved": compared, **fronts})


def print_points(title: str, points: list[Point]) -> None:
    """Both fronts in one table."""
    shown = table(
        title, "", "MB", "bits", "model MB", "divergence", "perplexity", "bytes saved", right=(1, 2, 3, 4, 5, 6)
    )
    for p in points:
        perplexity = "" if p.perplexity is None else f"{p.perplexity:.3f}"
        share = ""
        if p.saved is not None and p.interval is not None:
            share = f"{p.saved:.1%} ({p.interval[0]:.1%} to {p.interval[1]:.1%})"
        shown.add_row(
            p.name, f"{p.bytes / 1e6:.3f}", f"{p.bits:.2f}", f"{p.model_bytes / 1e6:.2f}", f"{p.divergence:.5f}", perplexity, share
        )  # fmt: skip
    out.print(shown)


if __name__ == "__main__":
    main()
