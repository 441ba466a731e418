"""``pocketport debug``: where a run's loss comes from, tensor by tensor, and what takes it back."""

from pathlib import Path
from typing import Annotated

import typer

from pocketport.commands.console import out, print_json, table
from pocketport.commands.options import Cache, Json, RunDirectory, Targets, opened
from pocketport.debugging.diagnose import diagnose
from pocketport.debugging.document import ComponentDebug, DebugDocument, RepairRecord, TargetDebug, WorstRecord
from pocketport.debugging.fixing import fix as try_remedies
from pocketport.debugging.opened import open_run
from pocketport.profiles.units import format_quantity
from pocketport.report.debug import write_debug_page
from pocketport.report.figures import format_db, format_share, sparkline
from pocketport.request import Request
from pocketport.run_document import load_document


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(debug)


def debug(
    directory: RunDirectory,
    target: Targets = None,
    component: Annotated[
        list[str] | None, typer.Option("--component", "-c", help="Only this component; repeat for several.")
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="How many of the worst tensors to show.")] = 10,
    samples: Annotated[int, typer.Option(min=1, help="Held-out samples of the end-to-end runs.")] = 8,
    fix: Annotated[
        bool, typer.Option("--fix", help="Try remedies on the worst tensors; write those that pay as a recipe.")
    ] = False,
    html: Annotated[Path | None, typer.Option(help="Write a page with histograms.", dir_okay=False)] = None,
    cache: Cache = None,
    json_output: Json = False,
) -> None:
    """Show which component, and which tensor of it, costs what, and why."""
    document = load_document(directory)
    with opened(Request.load(directory), directory, cache, quiet=json_output) as context:
        run = open_run(context, document, target)
        diagnoses = []
        for one in run.targets.values():
            diagnosis = diagnose(run, one, component, top=top, samples=samples)
            if fix:
                try_remedies(run, one, diagnosis)
            diagnoses.append(diagnosis.document)
    found = DebugDocument(run=str(directory), model=document.model.name, recipe=document.recipe, targets=diagnoses)
    if html is not None:
        write_debug_page(found, html)
    if json_output:
        print_json(found.model_dump(by_alias=True))
        return
    for made in diagnoses:
        _print_target(found, made)
    if html is not None:
        out.print(f"\n[bold]{html}[/] has the histograms.")


def _print_target(document: DebugDocument, target: TargetDebug) -> None:
    _print_attribution(document, target)
    _print_components(target)
    _print_worst(target)
    for record in target.repairs:
        _print_repair(record)
    if target.recipe:
        out.print(f"[bold]{target.recipe}[/] has what paid; give it to `pocketport port` as --recipe.")
    elif target.repairs:
        out.print("No remedy brought a tenth of a decibel.")


def _print_attribution(document: DebugDocument, target: TargetDebug) -> None:
    found = target.attribution
    metric = found.metric.replace("_", " ")
    title = f"{document.model} on {target.id}, recipe {document.recipe}: the loss end to end, {found.samples} held-out samples"
    shown = table(
        title, "component", "scheme", f"it alone: {metric}", "SQNR", f"all but it: {metric}", "SQNR", "of the noise",
        right=(2, 3, 4, 5, 6),
    )  # fmt: skip
    for component in sorted(target.components, key=lambda c: -c.share):
        alone, others = found.alone[component.name], found.all_but.get(component.name)
        shown.add_row(
            component.name, component.scheme, f"{alone.score:.4f}", format_db(alone.db),
            "" if others is None else f"{others.score:.4f}", "" if others is None else format_db(others.db), format_share(component.share),
        )  # fmt: skip
    shown.add_row(
        "[bold]all[/]", "", f"[bold]{found.everything.score:.4f}[/]", f"[bold]{format_db(found.everything.db)}[/]", "", "", "",
    )  # fmt: skip
    out.print(shown)
    out.print(f"[dim]float: {found.float_score:.4f}. SQNR at {', '.join(found.ends)}.[/]\n")


def _print_components(target: TargetDebug) -> None:
    shown = table(
        "Each component by itself, at its worst output", "component", "output", "SQNR", "activations\nonly", "weights\nonly",
        "as\nexecuted", "to the\npivot", "float → packed → device", right=(2, 3, 4, 5, 6, 7),
    )  # fmt: skip
    for component in sorted(target.components, key=lambda c: c.db):
        worst = min(component.outputs, key=lambda o: o.pivot_db)
        engine = f"\n[dim]{component.engine}[/]" if component.engine else ""
        executed = format_db(worst.executed_db)
        kept = format_db(component.executed_to_pivot_db)
        shown.add_row(
            component.name, worst.output, format_db(component.db), format_db(component.activations_db), format_db(component.constants_db),
            f"{executed}{engine}", kept, _sizes(component),
        )  # fmt: skip
    out.print(shown)


def _print_worst(target: TargetDebug) -> None:
    shown = table(
        "Worst tensors, by the noise that they make", "tensor", "float\nrounded", "local\ncumulative", "of the\nnoise", "without\nit",
        "values\nrange", "clipped\nlevels", "to try", right=(2, 3, 4, 5, 6),
    )  # fmt: skip
    for column in shown.columns[1:-1]:
        column.no_wrap = True
    for w in target.worst:
        shown.add_row(
            f"{w.component}/{w.tensor}\n[dim]{' · '.join(filter(None, (w.op, w.dtype, w.how)))}[/]",
            f"{sparkline(w.before)}\n{sparkline(w.after)}", f"{format_db(w.local_db)}\n[dim]{format_db(w.cumulative_db)}[/]",
            format_share(w.share), f"{w.gain_db:+.2f} dB", _ranges(w), f"{format_share(w.clipped)}\n[dim]{w.levels}/{w.of_levels}[/]",
            w.remedies[0] if w.remedies else "[dim]nothing[/]",
        )  # fmt: skip
    out.print(shown)
    if not target.repairs:
        out.print("[dim]“to try” is not measured; --fix measures it.[/]")


def _print_repair(record: RepairRecord) -> None:
    shown = table(
        f"{record.component}: {len(record.trials)} remedies tried", "tensor", "remedy", "before", "after", "gain", "bytes",
        right=(2, 3, 4, 5),
    )  # fmt: skip
    for t in record.trials:
        if t.kept and t.after_db is not None and t.bytes_after is not None:
            shown.add_row(
                t.tensor, t.remedy, format_db(t.before_db), format_db(t.after_db), f"[green]{t.after_db - t.before_db:+.2f} dB[/]",
                f"{t.bytes_after - t.bytes_before:+,}",
            )  # fmt: skip
    shown.add_row(
        "[bold]all that paid[/]", "", format_db(record.before_db), format_db(record.after_db),
        f"[bold green]{record.after_db - record.before_db:+.2f} dB[/]", f"{record.bytes_after - record.bytes_before:+,}",
    )  # fmt: skip
    if record.executed_after_db is not None and record.executed_before_db is not None:
        gain = record.executed_after_db - record.executed_before_db
        shown.add_row(
            "[bold]as executed[/]", "", format_db(record.executed_before_db), format_db(record.executed_after_db),
            f"[bold]{gain:+.2f} dB[/]", "",
        )  # fmt: skip
    out.print(shown)
    if record.refused:
        out.print(f"[red]not executed with these:[/] {record.refused}")


def _ranges(w: WorstRecord) -> str:
    """What the values span, and what was chosen."""
    return f"{w.low:.3g} … {w.high:.3g}\n[dim]{w.chosen_low:.3g} … {w.chosen_high:.3g}[/]"


def _sizes(component: ComponentDebug) -> str:
    """Float, packed, and the artifact's bytes."""
    counts = [sum(s.float_bytes for s in component.sizes), sum(s.packed_bytes for s in component.sizes)]
    texts = [format_quantity(count, "bytes") for count in counts]
    texts.append("–" if component.device_bytes is None else format_quantity(component.device_bytes, "bytes"))
    return " → ".join(texts)
