"""The HTP compiler's own estimates of models that were measured on phones, for ``fit_latency.py``.

    python benchmarks/htp_estimates.py [--onnx FOLDER] [--seconds N] [MODEL[/PRECISION] ...]

Models are the constructions in ``latency_models`` (random weights: shapes decide latency, values don't), exported to FOLDER and kept there. Each is
quantized with the ranges of random inputs, lowered for the sm8650, and the compiler is asked for its estimate. New rows go to
``benchmarks/data/htp_estimates.csv``; rows that are there are not made again. Needs torchvision, timm and the extras ``qualcomm``, ``llm`` and ``export``.
"""

import argparse
import csv
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

from latency_data import PRECISIONS

TABLE = Path(__file__).parent / "data" / "htp_estimates.csv"
FIGURES = (
    "sa8255p_us", "sa8255p_us_low", "sa8255p_us_high", "sa8255p_input_fill_bytes", "sa8255p_intermediate_fill_bytes",
    "sa8255p_intermediate_spill_bytes", "sa8255p_output_spill_bytes", "sa8255p_ops_without_cost", "sa8540p_us",
)  # fmt: skip
COLUMNS = ("model", "precision", *FIGURES, "toolchain")
TARGET = "qualcomm/sm8650"


def rows() -> list[dict[str, str]]:
    with TABLE.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def export(name: str, path: Path) -> None:
    """Write a construction as ONNX."""
    import torch
    from latency_models import CONSTRUCTIONS

    torch.manual_seed(0)
    torch.backends.mha.set_fastpath_enabled(False)  # one op that no exporter knows
    construction = CONSTRUCTIONS[name]
    with torch.no_grad():
        model = construction.build().eval()
        for layer in model.modules():
            if isinstance(layer, torch.nn.BatchNorm2d):
                # An identity's addition would be taken out, and the rest no longer be a normalization.
                torch.nn.init.ones_(layer.bias)
        torch.onnx.export(
            model, construction.inputs, str(path), dynamo=False, opset_version=17, do_constant_folding=False
        )


def estimate(name: str, precision: str, folder: Path) -> dict[str, float]:
    """The compiler's figures for one model; called in a process of its own, since the vendor's library keeps state."""
    from pocketport.compiler_estimate import estimate_in_worker
    from pocketport.compress.ingest import ingest
    from pocketport.targets.contract import Target

    path = folder / f"{name.replace(':', '.')}.onnx"
    if not path.exists():
        export(name, path)
    with TemporaryDirectory() as temporary:
        bundle = ingest(path, keep_rows=False)
        bundle.save(Path(temporary) / "float")
        return estimate_in_worker(Path(temporary) / "float", next(iter(bundle)).name, Target.parse(TARGET), precision)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", help="default: every model at every precision")
    parser.add_argument("--onnx", type=Path, default=Path("out/latency_models"))
    parser.add_argument("--seconds", type=float, default=600, help="wall time that one model may take")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.onnx.mkdir(parents=True, exist_ok=True)
    if arguments.one:
        name, _, precision = arguments.one.rpartition("/")
        figures = estimate(name, precision, arguments.onnx)
        print("estimate", *(figures.get(f, "") for f in FIGURES), sep=",")
        return
    wanted = arguments.models
    if not wanted:
        from latency_models import CONSTRUCTIONS

        wanted = list(CONSTRUCTIONS)
    jobs = [(n, p) for n, _, p in (w.partition("/") for w in wanted)]
    known = {(r["model"], r["precision"]) for r in rows()}
    for name, precision in [(n, q) for n, p in jobs for q in ([p] if p else PRECISIONS)]:
        if (name, precision) in known:
            continue
        start = time.monotonic()
        command = [sys.executable, __file__, "--onnx", str(arguments.onnx), "--one", f"{name}/{precision}"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=arguments.seconds, check=False)
        except subprocess.TimeoutExpired:
            print(f"{name} {precision}: more than {arguments.seconds:.0f} s", flush=True)
            continue
        found = [line for line in done.stdout.splitlines() if line.startswith("estimate,")]
        if not found:
            print(f"{name} {precision}: {(done.stderr.strip().splitlines() or ['no output'])[-1][:300]}", flush=True)
            continue
        values = dict(zip(FIGURES, found[0].split(",")[1:], strict=True))
        row = {
            "model": name,
            "precision": precision,
            **values,
            "toolchain": f"onnxruntime-qnn {version('onnxruntime-qnn')}",
        }
        with TABLE.open("a", encoding="utf-8", newline="") as stream:
            csv.DictWriter(stream, COLUMNS, lineterminator="\n").writerow(row)
        print(name, precision, *values.values(), f"{time.monotonic() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
