"""The reference's language model in few bits, by llama.cpp with an importance matrix and by ours: divergence at equal bytes.

``python benchmarks/k_quants.py BIN [--rows PATTERN] [--samples 64] [--report-samples 600] [--work DIR] [--docs docs/quantization.md]
[--json FILE]``, with BIN the folder of llama.cpp's programs (llama-quantize). Every row is kept in the work folder; those that match
the pattern and are not there are made, and the table shows all that are.

Everyone calibrates on the same prompts about images, vision tokens included: llama-imatrix reads only text, so the matrix that
llama-quantize is given is written here, from the mean squares of the same rows that ours see. All linear layers are
quantized; embedding and vocabulary projection stay float, and are not counted. Quality is the mean divergence of the
predicted answers from the float model's on other images, with 90 % intervals over resampled images (Efron's bootstrap).
"""

import argparse
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from itertools import chain
from pathlib import Path

import gguf
import numpy as np
import yaml
from docs_section import replace_section
from llama_cpp import Programs, language_file, port
from mixed_precision import LANGUAGE, QUANTILES, REPORT_SEED, RESAMPLED, of_file
from numpy.typing import NDArray
from torch import Tensor

from pocketport.calibration.capture import calibrate
from pocketport.commands.console import BarProgress, out, table
from pocketport.compress.blockwise.samples import ROW_WEIGHTS
from pocketport.compress.families.registry import host_of
from pocketport.compress.ggml.names import text_names
from pocketport.compress.ingest import REFERENCE
from pocketport.compress.mixed_precision.checkpoint import Dequantized
from pocketport.compress.mixed_precision.next_token import Quality
from pocketport.compress.planning.weights import CALIBRATED_COMPONENT, Use, find_uses
from pocketport.compress.quantized_weights import QuantizedWeights
from pocketport.files import write_json
from pocketport.request import Request
from pocketport.stages.context import Context
from pocketport.stages.image_sequences import Answers
from pocketport.stages.search import FormatSearch
from pocketport.stages.weights import plan_formats, quantize_format
from pocketport.store import Store

TOLD = ("", ", imatrix")  # what is told of llama.cpp's rows
TYPES = ("Q3_K_S", "Q3_K_M", "IQ4_XS", "Q4_K_S", "Q4_K_M")
REFINED = {"propagation": 0.5, "sweeps": 2}
ALL = {**REFINED, "distillation": 1}
OURS = {  # row → format, and the rule of all linear layers
    **{f"{kind}, importance": (f"gguf:{kind.lower()}", {"algorithm": "importance"}) for kind in ("IQ4_XS", "Q4_K_M")},
    **{f"{kind}, gptq": (f"gguf:{kind.lower()}", {"algorithm": "gptq"}) for kind in TYPES},
    **{
        f"{kind}, gptq refined": (f"gguf:{kind.lower()}", {"algorithm": "gptq", "algorithm_options": REFINED})
        for kind in TYPES
    },
    **{
        f"{scheme}{'' if symmetric else ', asymmetric'}, gptq refined and distilled": (
            "gptq", {"algorithm": "gptq", "algorithm_options": ALL, "scheme": f"{scheme}fp16", "symmetric": symmetric},
        )
        for scheme in ("w3b64", "w3b32", "w4b64", "w4b32") for symmetric in (True, False)
    },
}  # fmt: skip


@dataclass
class Row:
    """One set of weights.

    Attributes:
        who: made it.
        name: of what it is.
        bits: mean of the linear layers' weights, scales included.
        divergence: nats a prediction.
        interval: of that.
    """

    who: str
    name: str
    bits: float
    divergence: float
    interval: tuple[float, float]


def resampled(found: Quality) -> tuple[float, float]:
    """The interval of a mean divergence."""
    sums, counts = np.array(found.sums), np.array(found.counts, np.float64)
    drawn = np.random.default_rng(0).multinomial(len(counts), np.full(len(counts), 1 / len(counts)), RESAMPLED)
    low, high = np.quantile((drawn @ sums) / (drawn @ counts), QUANTILES)
    return float(low), float(high)


def importance_matrix(path: Path, means: Mapping[str, NDArray[np.float64]], names: Mapping[str, str]) -> None:
    """Write what llama-imatrix writes: of every weight the sum of squares of each input, and of how many rows.

    Args:
        path: the file.
        means: mean squares by published name, [K].
        names: published names → llama.cpp's.
    """
    writer = gguf.GGUFWriter(path, "")
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", ["prompts about images"])
    writer.add_uint32("imatrix.chunk_count", 1)
    writer.add_uint32("imatrix.chunk_size", 1)
    for name, values in means.items():
        writer.add_tensor(f"{names[name]}.in_sum2", values.astype(np.float32)[None])
        writer.add_tensor(f"{names[name]}.counts", np.ones((1, 1), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def mean_squares(search: FormatSearch, uses: Mapping[str, Use]) -> dict[str, NDArray[np.float64]]:
    """Of the inputs of every linear layer over the calibration prompts, without padding."""
    (job,) = plan_formats(search.context.request)
    assert job.sequences is not None
    feeds = job.sequences.feeds(job.bundle, host_of(job.bundle))
    given = ((CALIBRATED_COMPONENT, {n: a for n, a in f.items() if n != ROW_WEIGHTS}) for f in feeds)
    statistics = calibrate({CALIBRATED_COMPONENT: job.bundle[CALIBRATED_COMPONENT].graph}, given)
    moments = {name: statistics.moments[f"{use.component}/{use.activation}"].mean() for name, use in uses.items()}
    return {name: moment.diagonal for name, moment in moments.items()}


def theirs(
    search: FormatSearch, uses: Mapping[str, Use], data: Answers, programs: Programs, work: Path, wanted: Sequence[str]
) -> Iterator[Row]:
    """Rows of llama-quantize, with the matrix and without; those of `wanted`."""
    if not {f"{kind}{told}" for kind in TYPES for told in TOLD}.intersection(wanted):
        return
    plain = language_file(port(REFERENCE, "gguf:f32", work))
    places = text_names(str(gguf.GGUFReader(plain).fields["general.architecture"].contents()), LANGUAGE)
    names = {name: places.of_published(name)[0].gguf for name in uses}
    matrix = work / "imatrix.gguf"
    importance_matrix(matrix, mean_squares(search, uses), names)
    for kind in TYPES:
        for told in TOLD:
            if f"{kind}{told}" not in wanted:
                continue
            arguments = ["--imatrix", matrix] if told else []
            path = work / f"{kind}{'-imatrix' if told else ''}.gguf"
            programs.run("llama-quantize", *arguments, plain, path, kind)
            weights, size = of_file(search, path)
            yield row("llama.cpp", f"{kind}{told}", search, weights, data, size)


def ours(
    search: FormatSearch, uses: Mapping[str, Use], data: Answers, work: Path, wanted: Sequence[str]
) -> Iterator[Row]:
    """Rows of `OURS`, those of `wanted`."""
    for name, (form, told) in OURS.items():
        if name not in wanted:
            continue
        recipe = work / "recipe.yaml"
        recipe.write_text(yaml.safe_dump({"version": 1, "rules": [told]}))
        request = search.context.request.model_copy(update={"formats": [form], "recipe": str(recipe)})
        (job,) = plan_formats(request)
        weights = Dequantized(QuantizedWeights(quantize_format(search.context, job).path), list(uses))
        size = sum(plan.bytes_after for plan in job.plans if plan.tensor in uses)
        yield row("ours", name, search, weights, data, size)


def row(who: str, name: str, search: FormatSearch, weights: Mapping[str, Tensor], data: Answers, size: int) -> Row:
    """As it was measured; it is shown at once."""
    found = search.quality_of(weights, data)
    elements = sum(weight.numel() for weight in weights.values())
    made = Row(who, name, 8 * size / elements, found.divergence, resampled(found))
    out.print(f"{who} {name}: {made.bits:.2f} bits, divergence {made.divergence:.5f}", markup=False, highlight=False)
    return made


def main() -> None:
    """Measure all rows, print the table, write it where it was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bin", type=Path)
    parser.add_argument("--rows", default="*", help="which of them are made, a pattern")
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--report-samples", type=int, default=600)
    parser.add_argument("--work", type=Path, default=Path("build/k-quants"))
    parser.add_argument("--docs", type=Path)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    kept = options.work / f"rows-{options.samples}-{options.report_samples}"
    kept.mkdir(parents=True, exist_ok=True)
    request = Request(source=REFERENCE, formats=["gptq"], recipe="gptq", calibration_samples=options.samples)
    with BarProgress() as progress, tempfile.TemporaryDirectory() as folder:
        context = Context(request, Store(options.work / "cache"), Path(folder), progress)
        search = FormatSearch(context, None, measured=1)
        data, _ = search.data(request.model_copy(update={"seed": REPORT_SEED}), options.report_samples)
        assert isinstance(data, Answers)
        linear = {weight for layer in search.found.layers for weight in layer.weights}
        uses = {name: use for name, use in find_uses(search.bundle).items() if name in linear}
        names = [f"{kind}{told}" for kind in TYPES for told in TOLD] + list(OURS)
        wanted = [n for n in names if fnmatchcase(n, options.rows) and not (kept / f"{n}.json").is_file()]
        made = [
            theirs(search, uses, data, Programs(options.bin), options.work, wanted),
            ours(search, uses, data, options.work, wanted),
        ]
        for found in chain(*made):
            write_json(kept / f"{found.name}.json", asdict(found))
    rows = [Row(**json.loads(path.read_text("utf-8"))) for path in sorted(kept.glob("*.json"))]
    rows.sort(key=lambda r: (r.bits, r.divergence))
    shown = table("the reference's language model", "", "by", "bits", "divergence", right=(2, 3))
    for r in rows:
        shown.add_row(
            r.name, r.who, f"{r.bits:.2f}", f"{r.divergence:.5f} ({r.interval[0]:.5f} to {r.interval[1]:.5f})"
        )
    out.print(shown)
    if options.docs:
        lines = ["| | by | bits | divergence, nats |", "|---|---|---|---|"]
        lines += [
            f"| {r.name} | {r.who} | {r.bits:.2f} | {r.divergence:.5f} ({r.interval[0]:.5f} to {r.interval[1]:.5f}) |"
            for r in rows
        ]
        replace_section(options.docs, "k-quants", "\n".join(lines))
    if options.json:
        write_json(options.json, [asdict(r) for r in rows])


if __name__ == "__main__":
    main()
