"""What conditioning does to quantized accuracy: the reference model with outlier channels planted, and as it is.

``python benchmarks/conditioning.py [--out out/conditioning.json] [--calibration-samples 16] [--samples 16]``

Outliers are planted without changing what the model computes: `PLANTED` channels of every RMSNorm's gain are multiplied by
64, the columns that read them divided by 64, as large language models have them. Then prefill is quantized and its logits
are compared with float's on held-out images: for a Qualcomm NPU in 8-bit weights and activations with the outliers, for x86 in
4-bit weights (blocks of 32, or a scale a channel; round to nearest) and float activations without. Prints the table and writes JSON.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pocketport.calibration.capture import calibrate
from pocketport.calibration.metrics import sqnr_db
from pocketport.compress.bundle import ModelBundle
from pocketport.compress.conditioning.base import from_norm, outputs_of
from pocketport.compress.conditioning.condition import condition
from pocketport.compress.conditioning.search import streams_from
from pocketport.compress.conditioning.streams import Chain, Change
from pocketport.compress.executors.ort_executor import Arrays, OrtExecutor
from pocketport.compress.graph import clone_graph
from pocketport.compress.ingest import ingest
from pocketport.compress.pivot.apply import apply_plan
from pocketport.compress.planning.plan import make_plan
from pocketport.compress.recipe import Conditioning, Recipe
from pocketport.data import load_data
from pocketport.request import Request
from pocketport.targets.contract import Target
from pocketport.targets.registry import backend_for

PLANTED = (7, 90, 201)
FACTOR = 64.0
ACTIVATION_TARGET, WEIGHT_TARGET = "qualcomm/sm8650", "x86"  # all in integers; weights only
LANGUAGE = "[pd]*"  # prefill and decode: what is measured
COMPONENTS = {"smoothquant": LANGUAGE, "awq": LANGUAGE, "fold_gain": LANGUAGE}
ACTIVATIONS = {
    "nothing": [], "fold_gain": ["fold_gain"], "smoothquant": ["smoothquant"], "rotate": ["rotate"],
    "rotate, smoothquant": ["rotate", "smoothquant"],
}  # fmt: skip
WEIGHTS = {
    "nothing": [],
    "awq": ["awq"],
    "reorder": ["reorder"],
    "rotate": ["rotate"],
    "rotate, awq": ["rotate", "awq"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out/conditioning.json"))
    parser.add_argument("--calibration-samples", type=int, default=16)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--only", nargs="*", default=["w8a8", "w4b32fp32", "w4cfp32"])
    arguments = parser.parse_args()
    reference = ingest("reference")
    plain = reference.with_graphs({c.name: clone_graph(c.graph) for c in reference})
    rows = []
    for scheme in arguments.only:
        model = planted(plain) if scheme == "w8a8" else plain
        for name, rewrites in (ACTIVATIONS if scheme == "w8a8" else WEIGHTS).items():
            options = {"awq": {"bits": 4, "block": 32 if "b32" in scheme else 0}}
            steps = [
                Conditioning.model_validate(
                    {"rewrite": r, "component": COMPONENTS.get(r, "*"), "options": options.get(r, {})}
                )
                for r in rewrites
            ]
            decibels = quantized(model, steps, scheme, arguments.calibration_samples, arguments.samples)
            rows.append({"scheme": scheme, "conditioning": name, "logits_db": round(decibels, 1)})
            print(f"{scheme:10} {name:20} {decibels:6.1f} dB", flush=True)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(rows, indent=1), encoding="utf-8")


def planted(bundle: ModelBundle) -> ModelBundle:
    """The same function with outliers behind every RMSNorm of prefill and decode."""
    graphs = {c.name: clone_graph(c.graph) for c in bundle}
    chain = Chain(graphs, {})
    for stream in streams_from(chain, outputs_of(chain, ["RMSNormalization"]), Change.SCALE)[0]:
        factors = np.ones(stream.width)
        factors[list(PLANTED)] = FACTOR
        if from_norm(stream):
            for slot in stream.writers:
                slot.scale(factors)
            for slot in stream.readers:
                slot.scale(1 / factors)
    return bundle.with_graphs(graphs)


def prompts(bundle: ModelBundle, seed: int, count: int) -> Iterator[tuple[str, Arrays]]:
    """Feeds of prefill and decode."""
    data = load_data(bundle, Request(source="reference", calibration_samples=count, seed=seed))
    return ((name, feeds) for name, feeds in data.calibration() if name in ("prefill", "decode"))


def quantized(
    bundle: ModelBundle, steps: list[Conditioning], scheme: str, calibration_samples: int, samples: int
) -> float:
    """SQNR of prefill's logits, float against quantized, dB."""
    expected = logits(bundle, bundle, samples)
    current, _ = condition(bundle, steps, lambda b: prompts(b, 0, calibration_samples), chained=True)
    recipe = Recipe.model_validate({"name": "bench", "rules": [{"scheme": scheme, "algorithm": "rtn"}]})
    only = ModelBundle(current.name, current.family, current.sha256, {"prefill": current["prefill"]})
    target = ACTIVATION_TARGET if scheme == "w8a8" else WEIGHT_TARGET
    plan = make_plan(only, recipe, target, backend_for(Target.parse(target)).legality(Target.parse(target)))
    feeds = ((name, values) for name, values in prompts(current, 0, calibration_samples) if name == "prefill")
    statistics = calibrate({"prefill": current["prefill"].graph}, feeds)
    pivot, _ = apply_plan(only, plan, statistics)
    return sqnr_db(expected, logits(current, pivot, samples))


def logits(chain: ModelBundle, bundle: ModelBundle, samples: int) -> NDArray[np.float64]:
    """Of held-out images, whose feeds come from the float graphs of `chain`."""
    executor = OrtExecutor(bundle["prefill"].graph)
    feeds = [values for name, values in prompts(chain, 1, samples) if name == "prefill"]
    return np.stack([executor.run(values)["logits"] for values in feeds]).astype(np.float64)


if __name__ == "__main__":
    main()
