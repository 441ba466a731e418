"""``pocketport tune``: the engine and its settings that run a model best on this machine."""

from pathlib import Path
from typing import Annotated

import typer

from pocketport.commands.console import BarProgress, out, print_json, table
from pocketport.commands.options import Cache, Json, LlamaCpp, Shapes, parse_shapes
from pocketport.errors import UsageError
from pocketport.profiles.units import format_quantity, parse_quantity
from pocketport.stages.context import Progress, SilentProgress
from pocketport.targets.configuration import DEFAULT_NAME, GGUF_NAME, ComponentConfiguration, Configuration, Contender
from pocketport.tuning import tune_file, tune_gguf, tune_run

SHOWN_OPS = 4
FAST = 100  # tokens a second that need no decimals


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(tune)


def tune(
    source: Annotated[Path, typer.Argument(help="A run's directory with x86 artifacts, an .onnx or a .gguf file.")],
    budget: Annotated[str, typer.Option(help="How long the search may take, e.g. 60s.")] = "60s",
    out_file: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="The file to write (default: x86.json, in the run's directory; llama-cpp.json beside a .gguf file).",
            dir_okay=False,
        ),
    ] = None,
    target: Annotated[str | None, typer.Option("--target", "-t", help="Of a run: which x86 target.")] = None,
    data: Annotated[
        Path | None, typer.Option(help="Of an .onnx file: an .npz file with its inputs (default: arbitrary ones).")
    ] = None,
    shape: Shapes = None,
    llama_cpp: LlamaCpp = None,
    prompt_tokens: Annotated[int, typer.Option(min=1, help="Of a .gguf file: tokens of a prompt.")] = 512,
    answer_tokens: Annotated[int, typer.Option(min=1, help="Of a .gguf file: tokens of an answer.")] = 64,
    cache: Cache = None,
    json_output: Json = False,
) -> None:
    """Search threads, engine, precision and memory settings on this machine; write what runs fastest."""
    try:
        seconds = parse_quantity(budget, "ms") / 1e3
    except ValueError as error:
        raise UsageError(str(error), where="--budget", fix="write it as 60s") from error
    gguf = source.suffix == ".gguf"
    if gguf and (data is not None or shape or target is not None):
        raise UsageError(
            "a .gguf file has no inputs and no target", where=str(source), fix="leave --data, --shape and --target out"
        )

    def tuned(progress: Progress) -> Configuration:
        if gguf:
            return tune_gguf(source, llama_cpp, (prompt_tokens, answer_tokens), seconds, progress)
        return _tuned(source, seconds, target, data, parse_shapes(shape), cache, progress)

    if json_output:
        found = tuned(SilentProgress())
    else:
        with BarProgress() as bars:
            found = tuned(bars)
    beside = source.parent / GGUF_NAME if gguf else Path(DEFAULT_NAME)
    path = out_file or (source / DEFAULT_NAME if source.is_dir() else beside)
    found.save(path)
    if json_output:
        print_json(found.model_dump(by_alias=True))
        return
    for name, component in found.components.items():
        if gguf:
            print_phase(name, component, found.shapes[name][0])
        else:
            print_component(name, component)
    if found.arguments:
        out.print(f"llama-server -m {source} {' '.join(found.arguments)}", soft_wrap=True, highlight=False)
    out.print(f"[bold]{path}[/] holds these settings, found on {found.processor} with {_versions(found)}.")


def _tuned(
    source: Path, seconds: float, target: str | None, data: Path | None, shapes: dict[str, list[int]],
    cache: Path | None, progress: Progress,
) -> Configuration:  # fmt: skip
    if source.is_dir():
        if data is not None or shapes:
            raise UsageError("a run has its own data and shapes", where=str(source), fix="leave --data and --shape out")
        return tune_run(source, target, seconds, cache, progress)
    if source.suffix != ".onnx" or target is not None:
        raise UsageError(
            "neither a run's directory nor an .onnx or .gguf file", where=str(source), fix="give one of them"
        )
    return tune_file(source, seconds, shapes, data, progress)


def print_component(name: str, component: ComponentConfiguration) -> None:
    """The final measurement, what was chosen, and where the time goes."""
    title = f"{name}: {component.tried} settings tried, the best measured anew in {component.turns} turns"
    shown = table(
        title, "", "one run", "of the chosen one's time", "SQNR", "cold start", "peak memory", right=(1, 2, 3, 4, 5)
    )
    for contender in component.contenders:
        peak = "" if contender.peak_bytes is None else format_quantity(contender.peak_bytes, "bytes")
        cold = "" if contender.cold_ms is None else f"{contender.cold_ms:.0f} ms"
        shown.add_row(
            contender.name, f"{contender.ms:.3g} ± {contender.mad_ms:.2g} ms", _gain(contender),
            _fidelity(contender, component.least_db), cold, peak,
        )  # fmt: skip
    out.print(shown)
    settings = ", ".join(f"{key} {value}" for key, value in component.settings.items() if value is not None)
    out.print(f"{name}: {settings}")
    total = sum(op.ms for op in component.ops)
    ops = ", ".join(f"{op.count} {op.op} {op.ms:.2g} ms" for op in component.ops[:SHOWN_OPS])
    out.print(f"{name}: {ops}; {total:.3g} ms in all ops\n")


def print_phase(name: str, component: ComponentConfiguration, tokens: int) -> None:
    """The same of llama.cpp's prompts or answers."""
    title = f"{name} of {tokens} tokens: {component.tried} settings tried, the best measured anew in {component.turns} turns"
    shown = table(title, "", "one run", "tokens/s", "of the chosen one's time", right=(1, 2, 3))
    for contender in component.contenders:
        time = f"{contender.ms:.3g} ± {contender.mad_ms:.2g} ms"
        speed = 1e3 * tokens / contender.ms
        shown.add_row(contender.name, time, f"{speed:.0f}" if speed >= FAST else f"{speed:.3g}", _gain(contender))
    out.print(shown)


def _fidelity(contender: Contender, least_db: float | None) -> str:
    if contender.fidelity_db is None:
        return ""
    shown = f"{contender.fidelity_db:.0f} dB"
    return f"[red]{shown}[/]" if least_db is not None and contender.fidelity_db < least_db else shown


def _gain(contender: Contender) -> str:
    gain = contender.gain
    return "" if gain is None else f"{gain.value:.2f} ({gain.low:.2f} to {gain.high:.2f})"


def _versions(found: Configuration) -> str:
    return ", ".join(f"{name} {version}" for name, version in found.engines.items())
