"""A full-size MiniCPM-Llama3-V 2.5 (8.5 B parameters, random weights) to 4 bits: time, peak memory, sizes.

``python benchmarks/full_size.py rtn gguf gptq [--layers 8] [--work DIR] [--json FILE]``

``rtn``: the whole model to 4 bits, round to nearest. ``gguf``: the whole model as Q4_K_M, with the float16 size beside it.
``gptq``: `--layers` of the 32 layers at full width, 128 × 512 tokens, groups of 128; the rest is extrapolated from the
layers' own times, and the table says so. Peak memory is what the kernel counted for the process (maximum resident set,
mapped files included).
"""

import argparse
import json
import os
import shutil
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from pocketport.commands.console import out, table
from pocketport.files import write_json

PRESET = "minicpm-llama3-v-2.5"
PUBLISHED_LAYERS = 32


@dataclass
class Row:
    """One measured command: wall seconds, peak bytes, bytes written, and what else is to be said."""

    name: str
    seconds: float
    peak_bytes: int
    bytes_written: int
    note: str = ""


def run(arguments: list[str], log: Path) -> tuple[float, int]:
    """Seconds and maximum resident set of one `pocketport` command."""
    command = [sys.executable, "-m", "pocketport", *arguments]
    start = time.perf_counter()
    with log.open("wb") as stream:
        process = os.posix_spawn(
            sys.executable, command, os.environ,
            file_actions=[(os.POSIX_SPAWN_DUP2, stream.fileno(), 1), (os.POSIX_SPAWN_DUP2, stream.fileno(), 2)],
        )  # fmt: skip
        _, status, usage = os.wait4(process, 0)
    if status:
        sys.exit(f"{' '.join(arguments)} failed:\n{log.read_text(errors='replace')[-3000:]}")
    return time.perf_counter() - start, usage.ru_maxrss * 1024


def folder_bytes(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


def checkpoint(work: Path, layers: int | None) -> Path:
    """The synthetic checkpoint, written unless it is there."""
    folder = work / (PRESET if layers is None else f"{PRESET}-{layers}-layers")
    if not (folder / "config.json").is_file():
        arguments = ["synth", PRESET, "--out", str(folder), "--seed", "0"]
        seconds, peak = run(arguments + ([] if layers is None else ["--layers", str(layers)]), work / "synth.log")
        out.print(f"synth: {folder_bytes(folder) / 1e9:.2f} GB in {seconds:.0f} s, peak {peak / 1e9:.2f} GB")
    return folder


def port(work: Path, source: Path, name: str, form: str, recipe: str, extra: list[str]) -> Row:
    """One `pocketport port --format`, from an empty cache."""
    cache, result = work / f"cache-{name}", work / f"out-{name}"
    shutil.rmtree(result, ignore_errors=True)
    shutil.rmtree(cache, ignore_errors=True)
    arguments = ["port", str(source), "--format", form, "--recipe", recipe, "--out", str(result), "--cache", str(cache)]
    os.environ["POCKETPORT_CACHE"] = str(cache)
    seconds, peak = run([*arguments, *extra], work / f"{name}.log")
    written = json.loads((result / "formats.json").read_text())["formats"][0]["bytes"]
    shutil.rmtree(cache)
    return Row(name, seconds, peak, written)


def main() -> None:
    """Run what was asked for and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="+", choices=["rtn", "gguf", "gptq"])
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--sequences", type=int, default=128)
    parser.add_argument("--work", type=Path, default=Path("build/full-size"))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    rows = []
    if "rtn" in options.parts or "gguf" in options.parts:
        whole = checkpoint(options.work, None)
        weights = sum(p.stat().st_size for p in whole.glob("*.safetensors"))
        rows.append(Row("bf16 checkpoint", 0, 0, weights, "published: 16–17 GB"))
        if "rtn" in options.parts:
            rows.append(port(options.work, whole, "rtn", "compressed-tensors", "rtn", []))
        if "gguf" in options.parts:
            rows.append(port(options.work, whole, "gguf", "gguf:q4_k_m", "default", []))
            rows[-1].note = "published: about 5 GB at Q4_K_M"
    if "gptq" in options.parts:
        some = checkpoint(options.work, options.layers)
        extra = ["--calibration-samples", str(options.sequences), "--sequence-length", "512"]
        row = port(options.work, some, "gptq", "gptq", "gptq", extra)
        whole_seconds = row.seconds * PUBLISHED_LAYERS / options.layers
        row.note = (
            f"{options.layers} of {PUBLISHED_LAYERS} layers; all of them extrapolated: {whole_seconds / 3600:.1f} h"
        )
        rows.append(row)
    shown = table(PRESET, "", "seconds", "peak memory", "written", "", right=(1, 2, 3))
    for row in rows:
        shown.add_row(
            row.name, f"{row.seconds:.0f}" if row.seconds else "", f"{row.peak_bytes / 1e9:.2f} GB" if row.peak_bytes else "",
            f"{row.bytes_written / 1e9:.2f} GB", row.note,
        )  # fmt: skip
    out.print(shown)
    if options.json:
        write_json(options.json, [asdict(r) for r in rows])


if __name__ == "__main__":
    main()
