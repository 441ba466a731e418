"""``pocketport targets``: what can be ported to, and whether its toolchain is installed."""

import typer

from pocketport.commands.console import out, print_diagnostics, print_json, table
from pocketport.commands.options import Json
from pocketport.targets.registry import all_backends


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(targets)


def targets(json_output: Json = False) -> None:
    """List every target, and say which toolchains are installed."""
    backends = all_backends()
    if json_output:
        print_json(
            {
                "schema": "pocketport.targets/1",
                "vendors": {
                    b.vendor: {
                        "targets": [str(t) for t in b.targets()],
                        "missing": [d.to_json() for d in b.missing()],
                    }
                    for b in backends
                },
            }
        )
        return
    shown = table("Targets", "vendor", "toolchain", "SoCs")
    for backend in backends:
        ready = "[red]not installed[/]" if any(d.severity == "error" for d in backend.missing()) else "[green]ready[/]"
        shown.add_row(backend.vendor, ready, " ".join(t.soc for t in backend.targets()))
    out.print(shown)
    print_diagnostics([d for backend in backends for d in backend.missing()])
