"""Tokens per second of language-model folders in onnxruntime-genai and OpenVINO, ours and the peers' own.

``python benchmarks/engines_llm.py NAME=FOLDER … [--prefill 128] [--decode 32] [--threads 2] [--repeats 5] [--json FILE]``

A folder with ``genai_config.json`` runs in onnxruntime-genai, one with ``openvino_model.xml`` in OpenVINO's CPU plugin with
its defaults. All are open at once and take turns, so that a busy machine is busy for everyone; medians are shown, with
the spread between the quartiles.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from pocketport.commands.console import out, table

Timed: TypeAlias = Callable[[list[int], int], tuple[float, float]]
"""Tokens of a prompt, tokens to generate → seconds of prefill and of decode."""


def onnxruntime_genai_folder(folder: Path, threads: int) -> Timed:
    """A folder in onnxruntime-genai."""
    import onnxruntime_genai as genai

    config = genai.Config(str(folder))
    config.overlay(json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": threads}}}}))
    model = genai.Model(config)

    def run(prompt: list[int], count: int) -> tuple[float, float]:
        parameters = genai.GeneratorParams(model)
        length = len(prompt) + count + 1
        parameters.set_search_options(max_length=length, min_length=length, do_sample=False)
        generator = genai.Generator(model, parameters)
        start = time.perf_counter()
        generator.append_tokens(np.array([prompt], np.int32))
        generator.generate_next_token()
        middle = time.perf_counter()
        for _ in range(count):
            generator.generate_next_token()
        return middle - start, time.perf_counter() - middle

    return run


def openvino_folder(folder: Path, threads: int) -> Timed:
    """A folder in OpenVINO's CPU plugin, the cache as its state."""
    import openvino

    properties = {
        "INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "ENABLE_CPU_PINNING": False
    }  # fmt: skip
    compiled = openvino.Core().compile_model(folder / "openvino_model.xml", "CPU", properties)
    request, names = compiled.create_infer_request(), {name for v in compiled.inputs for name in v.names}

    def step(tokens: list[int], past: int) -> int:
        total = past + len(tokens)
        feeds: dict[str, Any] = {"input_ids": np.array([tokens]), "attention_mask": np.ones((1, total), np.int64)}
        feeds |= {"position_ids": np.arange(past, total)[None], "beam_idx": np.zeros(1, np.int32)}
        results = request.infer({name: value for name, value in feeds.items() if name in names})
        return int(results[0][0, -1].argmax())

    def run(prompt: list[int], count: int) -> tuple[float, float]:
        request.reset_state()
        start = time.perf_counter()
        token = step(prompt, 0)
        middle = time.perf_counter()
        for i in range(count):
            token = step([token], len(prompt) + i)
        return middle - start, time.perf_counter() - middle

    return run


def opened(folder: Path, threads: int) -> Timed:
    """The engine that a folder is for."""
    if (folder / "genai_config.json").is_file():
        return onnxruntime_genai_folder(folder, threads)
    if (folder / "openvino_model.xml").is_file():
        return openvino_folder(folder, threads)
    raise SystemExit(f"{folder}: neither genai_config.json nor openvino_model.xml")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="+", metavar="NAME=FOLDER")
    for option, default in (("prefill", 128), ("decode", 32), ("threads", 2), ("repeats", 5)):
        parser.add_argument(f"--{option}", type=int, default=default)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    folders = {name: Path(path) for name, _, path in (text.partition("=") for text in arguments.folders)}
    engines = {name: opened(folder, arguments.threads) for name, folder in folders.items()}
    prompt = np.random.default_rng(0).integers(10, 1000, arguments.prefill).tolist()
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in engines}
    for turn in range(arguments.repeats + 1):
        for name, run in engines.items():
            timed = run(prompt, arguments.decode)
            if turn:  # the first warms up
                seconds[name].append(timed)
    records = {}
    shown = table("", "model", "MB", "prefill tok/s", "decode tok/s", right=(1, 2, 3))
    for name, pairs in seconds.items():
        rates = {
            "prefill": [arguments.prefill / p for p, _ in pairs],
            "decode": [arguments.decode / d for _, d in pairs],
        }
        size = sum(f.stat().st_size for f in folders[name].iterdir() if f.is_file())
        records[name] = {"bytes": size, **rates}
        cells = []
        for values in rates.values():
            low, _, high = statistics.quantiles(values, n=4) if len(values) > 1 else (values[0],) * 3
            cells.append(f"{statistics.median(values):.0f} ({low:.0f}…{high:.0f})")
        shown.add_row(name, f"{size / 1e6:.0f}", *cells)
    out.print(shown)
    if arguments.json:
        arguments.json.write_text(json.dumps({"schema": "pocketport.engines-llm/1", "engines": records}, indent=2))


if __name__ == "__main__":
    main()
