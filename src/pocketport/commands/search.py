"""``pocketport search``: a recipe with a scheme for each layer, the best for a budget."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from pocketport.commands.console import out, print_json, table
from pocketport.commands.options import SAMPLES, Cache, Json, MemoryLimit, Shapes, opened, parse_bytes, parse_shapes
from pocketport.compress.mixed_precision.allocation import Layer
from pocketport.compress.mixed_precision.sensitivity import LOSS
from pocketport.errors import UsageError
from pocketport.profiles.units import format_quantity
from pocketport.request import Request
from pocketport.stages.search import FormatSearch
from pocketport.stages.search_target import OBJECTIVES, TargetSearch
from pocketport.stages.searched import Budget, Candidate, Searched


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(search)


def search(
    source: Annotated[
        str, typer.Argument(help="`reference`, a checkpoint or ONNX folder, a .gguf, .onnx or .pt2 file.")
    ],
    out_file: Annotated[Path, typer.Option("--out", "-o", help="The recipe to write.", dir_okay=False)],
    format_: Annotated[str | None, typer.Option("--format", "-f", help="Checkpoint format, name[:variant].")] = None,
    target: Annotated[str | None, typer.Option("--target", "-t", help=r"vendor/soc\[@sdk].")] = None,
    budget_bytes: Annotated[str | None, typer.Option(help="Bytes of the whole model, e.g. 80MB.")] = None,
    budget_bits: Annotated[
        float | None, typer.Option(min=1, help="Mean bits of a weight, scales included, over the layers searched.")
    ] = None,
    budget_ms: Annotated[
        float | None, typer.Option(help="Of a target: time to read one token's (or one run's) weights searched.")
    ] = None,
    schemes: Annotated[str | None, typer.Option(help="Schemes to choose among, separated by commas.")] = None,
    recipe: Annotated[str, typer.Option(help="The recipe that the rules are added to.")] = "default",
    data: Annotated[str | None, typer.Option(help="What `port` calibrates on: a text, images, or .npz files.")] = None,
    shape: Shapes = None,
    calibration_samples: Annotated[int, typer.Option(min=1, help="Calibration samples.", rich_help_panel=SAMPLES)] = 64,
    error_samples: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Of a format, or of answers on a target: samples that errors are taken from (default: as many).",
            rich_help_panel=SAMPLES,
        ),
    ] = None,
    measured_samples: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Of the same: samples that allocations are measured on (default: 96 images, 8 texts).",
            rich_help_panel=SAMPLES,
        ),
    ] = None,
    exchanges: Annotated[
        int,
        typer.Option(
            min=0,
            help="Of a format: rounds in which layers exchange bits by what that measures; each takes two measurements a layer.",
        ),
    ] = 0,
    objective: Annotated[
        str | None,
        typer.Option(
            help="Of a target: `answers` about images through all components, or each component's `outputs` "
            "(default: answers, where the model gives any)."
        ),
    ] = None,
    sequence_length: Annotated[
        int, typer.Option(min=8, help="Tokens of a calibration sequence.", rich_help_panel=SAMPLES)
    ] = 512,
    confirm: Annotated[
        bool, typer.Option(help="Quantize with the best of each error model and measure; the best measured one wins.")
    ] = True,
    joined: Annotated[
        bool | None,
        typer.Option(help="One scheme for layers with a common input (default: in formats whose engines join them)."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    limit: MemoryLimit = None,
    cache: Cache = None,
    json_output: Json = False,
) -> None:
    """Choose a scheme for each layer: least loss of quality within a budget of bytes."""
    if sum(b is not None for b in (budget_bytes, budget_bits, budget_ms)) != 1 or (
        budget_ms is not None and not target
    ):
        raise UsageError(
            "one budget is needed", where="search",
            fix="give --budget-bytes 80MB, --budget-bits 4.25 or, for a target, --budget-ms 20",
        )  # fmt: skip
    if exchanges and (target or not confirm):
        raise UsageError(
            "layers exchange bits by what candidates of a format measure", where="--exchanges",
            fix="give --format, and leave --no-confirm out",
        )  # fmt: skip
    if objective is not None and (format_ or objective not in OBJECTIVES):
        raise UsageError(
            f"the objectives of a target are {' and '.join(OBJECTIVES)}", where=f"--objective {objective}",
            fix="give one of them, with --target",
        )  # fmt: skip
    if (format_ is None) == (target is None):
        raise UsageError("one format or one target is needed", where="search", fix="give --format NAME or --target T")
    request = Request(
        source=source, formats=[format_] if format_ else [], targets=[target] if target else [], recipe=recipe, data=data,
        shapes=parse_shapes(shape), calibration_samples=calibration_samples, sequence_length=sequence_length, seed=seed,
        memory_limit=parse_bytes(limit),
    )  # fmt: skip
    names = [name.strip() for name in schemes.split(",")] if schemes else None
    with tempfile.TemporaryDirectory() as work, opened(request, Path(work), cache, quiet=json_output) as context:
        budget = Budget(parse_bytes(budget_bytes), budget_bits, budget_ms)
        if format_:
            formats = FormatSearch(context, names, joined=joined, samples=error_samples, measured=measured_samples)
            searched = formats.search(budget, confirm=confirm, exchanges=exchanges)
        else:
            targets = TargetSearch(
                context, names, objective=objective, samples=error_samples, measured=measured_samples
            )
            searched = targets.search(budget, confirm=confirm)
    searched.write(out_file, f"{source}, {format_ or target}")
    if json_output:
        print_json(document(searched))
        return
    print_layers(searched)
    print_candidates(searched)
    out.print(f"\n[bold]{out_file}[/] has a rule for each of {len(searched.best.rules)} nodes.")


def print_layers(searched: Searched) -> None:
    """Every layer: the one scheme chosen, and what those that any layer got would cost it."""
    best = searched.best.allocation
    model = best.model if best.model in _models(searched) else LOSS
    known = dict.fromkeys(s for layer in searched.layers for s in layer.costs)
    schemes = [s for s in known if s in best.schemes.values()]
    shown = table(
        f"error of each layer ({model})", "layer", "weights", *schemes, "chosen", right=tuple(range(1, len(schemes) + 2))
    )  # fmt: skip
    for layer in searched.layers:
        errors = [
            f"{layer.error(searched.errors, s, model):.1e}" if s in layer.costs else "" for s in schemes
        ]  # fmt: skip
        shown.add_row(_title(layer), f"{layer.elements:,}", *errors, f"[bold]{best.schemes[layer.name]}[/]")
    out.print(shown)


def print_candidates(searched: Searched) -> None:
    """The allocations, the best first."""
    figures = list(searched.best.figures)
    shown = table(
        "allocations", "error model", "searched", "all", "bits", *figures, right=tuple(range(1, 4 + len(figures)))
    )  # fmt: skip
    for candidate in searched.candidates:
        cost = searched.bytes_of(candidate)
        shown.add_row(
            candidate.allocation.model, format_quantity(cost, "bytes"),
            format_quantity(cost + searched.fixed_bytes, "bytes"), f"{8 * cost / searched.elements:.3f}",
            *(f"{value:.5g}" for value in candidate.figures.values()),
        )  # fmt: skip
    out.print(shown)


def document(searched: Searched) -> dict[str, Any]:
    """The JSON document."""
    return {
        "schema": "pocketport.search/1",
        "fixed_bytes": searched.fixed_bytes,
        "layers": [
            {
                "layer": layer.name,
                "weights": layer.weights,
                "elements": layer.elements,
                "scheme": searched.best.allocation.schemes[layer.name],
                "bytes": dict(layer.costs),
                "errors": {s: {m: layer.error(searched.errors, s, m) for m in _models(searched)} for s in layer.costs},
            }
            for layer in searched.layers
        ],
        "candidates": [_candidate(searched, candidate) for candidate in searched.candidates],
    }


def _candidate(searched: Searched, candidate: Candidate) -> dict[str, Any]:
    return {
        "model": candidate.allocation.model,
        "bytes": searched.bytes_of(candidate),
        "error": candidate.allocation.error,
        "measured": dict(candidate.figures),
    }


def _models(searched: Searched) -> Sequence[str]:
    return list(next(iter(next(iter(searched.errors.values())).values())))


def _title(layer: Layer) -> str:
    """``model.layers.0.self_attn.q_proj k_proj v_proj``."""
    return " ".join([layer.name, *(node.name.rpartition(".")[2] for node in layer.nodes[1:])])
