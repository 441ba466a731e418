"""``pocketport inspect``: what a model is made of, without running anything long."""

from typing import Annotated

import typer

from pocketport.commands.console import out, print_diagnostics, print_json, table
from pocketport.commands.options import Json, Shapes, Targets, parse_shapes
from pocketport.compress.ingest import ingest
from pocketport.diagnostics import Diagnostic
from pocketport.profiles.cost import component_cost
from pocketport.profiles.units import format_quantity
from pocketport.targets.contract import Target
from pocketport.targets.registry import backend_for


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(inspect)


def inspect(
    source: Annotated[
        str, typer.Argument(help="`reference`, a checkpoint or ONNX folder, a .gguf, .onnx or .pt2 file.")
    ],
    shape: Shapes = None,
    target: Targets = None,
    json_output: Json = False,
) -> None:
    """Show a model's components and, for each target named, the ops that it can't take."""
    bundle = ingest(source, shapes=parse_shapes(shape))
    costs = {c.name: component_cost(c.graph) for c in bundle}
    findings = {
        text: [d for c in bundle for d in backend_for(Target.parse(text)).check(c.name, c.graph, Target.parse(text))]
        for text in target or []
    }
    if json_output:
        components = [
            {
                "name": c.name, "parameters": costs[c.name].parameters, "macs": costs[c.name].macs,
                "inputs": {str(v.name): [str(d) for d in v.shape or ()] for v in c.graph.graph.inputs},
                "outputs": {str(v.name): [str(d) for d in v.shape or ()] for v in c.graph.graph.outputs},
            }
            for c in bundle
        ]  # fmt: skip
        diagnostics = {text: [d.to_json() for d in found] for text, found in findings.items()}
        print_json(
            {
                "schema": "pocketport.inspect/1",
                "name": bundle.name,
                "family": bundle.family,
                "sha256": bundle.sha256,
                "components": components,
                "diagnostics": diagnostics,
            }
        )
        raise typer.Exit(_status(findings))
    shown = table(
        f"{bundle.name} ({bundle.family})",
        "component",
        "parameters",
        "MACs",
        "float32",
        "ops",
        "inputs",
        right=(1, 2, 3, 4),
    )
    for component in bundle:
        cost = costs[component.name]
        inputs = ", ".join(f"{v.name}{list(v.shape or ())}" for v in list(component.graph.graph.inputs)[:3])
        more = len(component.graph.graph.inputs) - 3
        shown.add_row(
            component.name, f"{cost.parameters:,}", f"{cost.macs / 1e6:,.1f} M", format_quantity(4 * cost.parameters, "bytes"), str(sum(1 for _ in component.graph.graph)),
            inputs + (f" … {more} more" if more > 0 else ""),
        )  # fmt: skip
    out.print(shown)
    for text, found in findings.items():
        out.print(f"{text}: {'every op is taken' if not found else f'{len(found)} findings'}")
        print_diagnostics(found)
    raise typer.Exit(_status(findings))


def _status(findings: dict[str, list[Diagnostic]]) -> int:
    return 1 if any(d.severity == "error" for found in findings.values() for d in found) else 0
