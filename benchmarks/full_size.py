"""A full-size MiniCPM-Llama3-V 2.5 (8.5 B parameters, random weights) to 4 bits: time, peak memory, sizes, peers.

``python benchmarks/full_size.py rtn gguf gptq peers [--layers 8] [--peer-layers 2] [--memory-limit 9GB] [--work DIR]
[--json FILE] [--gptqmodel PYTHON] [--llm-compressor PYTHON]``

``rtn``: the whole model to 4 bits, round to nearest. ``gguf``: the whole model as Q4_K_M, with its bytes beside the
published ones. ``gptq``: `--layers` of the 32 layers at full width, 128 × 512 tokens, groups of 128, symmetric; the rest
is extrapolated from the layers' own times, and the table says so. ``peers``: the same on `--peer-layers` layers of
Llama-3-8B (the same language model on its own), then GPTQModel and llm-compressor on the same checkpoint and the same
tokens, each in the environment whose interpreter is given; noise is that of the last logits of sequences that nobody
calibrated on. Peak memory is what the kernel counted for the process (maximum resident set, mapped files included).
"""

import argparse
import json
import os
import shutil
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from measured_command import run

from pocketport.calibration.metrics import sqnr_db
from pocketport.commands.console import out, table
from pocketport.compress.bundle import ModelBundle
from pocketport.compress.executors.torch_executor import TorchExecutor
from pocketport.compress.families.registry import Lengths, host_of
from pocketport.compress.ingest import ingest
from pocketport.files import write_json

PRESET, LANGUAGE = "minicpm-llama3-v-2.5", "llama-3-8b"
PUBLISHED_LAYERS = 32
SEQUENCE = 512
HELD_OUT = 4  # sequences that the noise is measured on
PEERS = {"gptqmodel": "gptqmodel_gptq.py", "llm-compressor": "llm_compressor_gptq.py"}


@dataclass
class Row:
    """One measured command: wall seconds, peak bytes, bytes written, and what else is to be said."""

    name: str
    seconds: float
    peak_bytes: int
    bytes_written: int
    note: str = ""


def pocketport(*arguments: str) -> list[str]:
    """A command of ours."""
    return [sys.executable, "-m", "pocketport", *arguments]


def folder_bytes(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


def checkpoint(work: Path, preset: str, layers: int | None) -> Path:
    """The synthetic checkpoint, written unless it is there."""
    folder = work / (preset if layers is None else f"{preset}-{layers}-layers")
    if not (folder / "config.json").is_file():
        command = pocketport("synth", preset, "--out", str(folder), "--seed", "0")
        seconds, peak = run(command + ([] if layers is None else ["--layers", str(layers)]), work / "synth.log")
        out.print(f"synth: {folder_bytes(folder) / 1e9:.2f} GB in {seconds:.0f} s, peak {peak / 1e9:.2f} GB")
    return folder


def port(work: Path, source: Path, name: str, form: str, recipe: str, *extra: str) -> Row:
    """One `pocketport port --format`, from an empty cache."""
    cache, result = work / f"cache-{name}", work / f"out-{name}"
    shutil.rmtree(result, ignore_errors=True)
    shutil.rmtree(cache, ignore_errors=True)
    os.environ["POCKETPORT_CACHE"] = str(cache)
    arguments = ["--format", form, "--recipe", recipe, "--out", str(result), "--cache", str(cache)]
    seconds, peak = run(pocketport("port", str(source), *arguments, *extra), work / f"{name}.log")
    shutil.rmtree(cache)
    record = json.loads((result / "formats.json").read_text())["formats"][0]
    row = Row(name, seconds, peak, record["bytes"], f"estimated {record['seconds_estimated']:.0f} s, ")
    row.note += f"{record['peak_rss_estimated'] / 1e9:.1f} GB"
    phases = sorted(record["timing"]["seconds"].items(), key=lambda item: -item[1])
    row.note += "; of which " + ", ".join(f"{n} {s:.0f} s" for n, s in phases[:5])
    return row


def whole_model(options: argparse.Namespace) -> list[Row]:
    """All 32 layers, vision tower and resampler included."""
    source = checkpoint(options.work, PRESET, None)
    weights = sum(p.stat().st_size for p in source.glob("*.safetensors"))
    rows = [Row("bf16 checkpoint", 0, 0, weights, "published: 16–17 GB")]
    if "rtn" in options.parts:
        rows.append(port(options.work, source, "rtn", "compressed-tensors", "rtn"))
    if "gguf" in options.parts:
        rows.append(port(options.work, source, "gguf", "gguf:q4_k_m", "default"))
        rows[-1].note = f"published: about 5 GB at Q4_K_M; {rows[-1].note}"
    return rows


def some_layers(options: argparse.Namespace) -> Row:
    """GPTQ of a few layers at full width."""
    source = checkpoint(options.work, PRESET, options.layers)
    row = port(options.work, source, "gptq", "gptq", "gptq", *_calibration(options))
    times = json.loads((options.work / "out-gptq" / "timing-gptq.json").read_text())["segments"]
    layers = [sum(phases.values()) for name, phases in times.items() if name.startswith("layer ")]
    rest = (PUBLISHED_LAYERS - options.layers) * float(np.median(layers))
    row.note = (
        f"{options.layers} of {PUBLISHED_LAYERS} layers, {np.median(layers):.0f} s a layer; all of them extrapolated: "
        f"{(row.seconds + rest) / 3600:.2f} h; {row.note}"
    )
    return row


def peers(options: argparse.Namespace) -> list[Row]:
    """Ours, GPTQModel and llm-compressor on the same checkpoint and the same tokens."""
    work = options.work
    source = checkpoint(work, LANGUAGE, options.peer_layers)
    bundle = ingest(source, lengths=Lengths(prompt=SEQUENCE))
    vocabulary = host_of(bundle).config.vocab_size
    ids = np.random.default_rng(0).integers(0, vocabulary, (options.sequences + HELD_OUT, SEQUENCE), np.int32)
    tokens = work / "tokens.npz"
    np.savez(tokens, input_ids=ids[: options.sequences])
    rows = [port(work, source, "ours", "gptq", "gptq", "--data", str(tokens), *_calibration(options))]
    made = {"ours": work / "out-ours" / "gptq"}
    for name, script in PEERS.items():
        interpreter = getattr(options, name.replace("-", "_"))
        if interpreter is None:
            out.print(f"{name}: no interpreter was given, left out")
            continue
        result = work / f"out-{name}"
        shutil.rmtree(result, ignore_errors=True)
        command = [
            str(interpreter),
            str(Path(__file__).parent / "peers" / script),
            str(source),
            str(tokens),
            str(result),
            json.dumps({"dtype": "float32"} if name == "llm-compressor" else {}),
        ]
        seconds, peak = run(command, work / f"{name}.log")
        made[name] = result
        rows.append(Row(name, seconds, peak, folder_bytes(result)))
    expected = last_logits(bundle, ids[options.sequences :])
    for row in rows:
        found = last_logits(ingest(made[row.name], lengths=Lengths(prompt=SEQUENCE)), ids[options.sequences :])
        row.note = f"{sqnr_db(expected, found):.2f} dB; {row.note}".removesuffix("; ")
        row.name = f"{row.name}, {options.peer_layers} layers"
    return rows


def last_logits(bundle: ModelBundle, ids: np.ndarray) -> np.ndarray:
    """Logits [n, V] behind each sequence."""
    host, embed = host_of(bundle), TorchExecutor(bundle["embed"].graph)
    prefill = TorchExecutor(bundle["prefill"].graph)
    embeds = (np.asarray(embed.run({"input_ids": row})["embeds"], np.float32) for row in ids)
    return np.concatenate([prefill.run(host.prefill_feeds(e, SEQUENCE))["logits"] for e in embeds])


def _calibration(options: argparse.Namespace) -> list[str]:
    samples = ["--calibration-samples", str(options.sequences), "--sequence-length", str(SEQUENCE)]
    return [*samples, "--memory-limit", options.memory_limit]


def main() -> None:
    """Run what was asked for and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="+", choices=["rtn", "gguf", "gptq", "peers"])
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--peer-layers", type=int, default=2)
    parser.add_argument("--sequences", type=int, default=128)
    parser.add_argument("--memory-limit", default="9GB")
    parser.add_argument("--gptqmodel", type=Path)
    parser.add_argument("--llm-compressor", type=Path)
    parser.add_argument("--work", type=Path, default=Path("build/full-size"))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    rows = whole_model(options) if {"rtn", "gguf"} & set(options.parts) else []
    rows += [some_layers(options)] if "gptq" in options.parts else []
    rows += peers(options) if "peers" in options.parts else []
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
    try:
        main()
    except RuntimeError as error:  # a command failed: its output says why, not a traceback
        sys.exit(str(error))
