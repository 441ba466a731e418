"""Between ingest and calibrate: the exact rewrites that a recipe asks for, and the check that nothing else changed."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketport.calibration.metrics import EXACT_DB, sqnr_db
from pocketport.compress.bundle import ModelBundle
from pocketport.compress.conditioning.condition import condition as condition_bundle
from pocketport.compress.families.registry import chat_of
from pocketport.compress.recipe import load_recipe
from pocketport.data import load_data
from pocketport.errors import VerificationError
from pocketport.files import write_json
from pocketport.stages.answer_gradients import AnswerGradients, answers_of, squared_gradients
from pocketport.stages.context import Context
from pocketport.stages.held_out import collect_held_out, load_held_out
from pocketport.stages.ingest import load_bundle
from pocketport.store import StageResult

LEAST_DB = 80.0  # float32 rounding alone leaves 100 and more
REWRITES_FILE, EQUIVALENCE_FILE = "conditioning.json", "equivalence.json"
CODE = ("compress", "calibration")
PACKAGES = ("onnxruntime", "numpy", "onnx-ir", "torch")


def condition(context: Context, ingested: StageResult) -> StageResult:
    """``bundle/`` (conditioned) and ``conditioning.json``; `ingested` itself where the recipe asks for nothing.

    Raises:
        UsageError: an unknown option, or no calibration data.
        VerificationError: a rewrite finds nothing to change, or the float model no longer computes the same.
    """
    steps = load_recipe(context.request.recipe).conditioning
    if not steps:
        return ingested
    bundle = load_bundle(ingested)
    data = load_data(bundle, context.request)
    context.progress.start("condition", "condition: " + ", ".join(s.rewrite for s in steps), None)
    chat = chat_of(bundle) is not None
    inputs = {
        "bundle": ingested.digest, "data": data.fingerprint, "steps": [step.model_dump() for step in steps],
        "seed": context.request.seed,
    }  # fmt: skip

    def produce(directory: Path) -> None:
        def gradients(current: ModelBundle, nodes: Mapping[str, Iterable[str]]) -> dict[str, NDArray[np.float64]]:
            found = AnswerGradients(current, answers_of(current, context.request), context.request)
            return squared_gradients(found, directory / ".activations", nodes)

        conditioned, done = condition_bundle(
            bundle, steps, lambda current: load_data(current, context.request).calibration(), chained=chat,
            gradients=gradients if chat else None,
        )  # fmt: skip
        conditioned.save(directory / "bundle")
        write_json(directory / REWRITES_FILE, [asdict(d) for d in done])

    result = context.store.run("condition", inputs, produce, code=CODE, packages=PACKAGES)
    return context.record("condition", result)


def check_equivalence(context: Context, ingested: StageResult, conditioned: StageResult) -> StageResult:
    """``equivalence.json``: component → least SQNR, dB, of its outputs in conditioned float against float, held out.

    Data between components whose channels were changed on purpose are left out; the components that they go to are not.

    Raises:
        VerificationError: an output is under `LEAST_DB`.
    """
    before = collect_held_out(context, ingested, "held-out original")
    after = collect_held_out(context, conditioned)
    context.progress.start("equivalence", "float before and after conditioning", None)
    moved = {name for rewrite in load_rewrites(conditioned) for name in rewrite["crossings"]}

    def produce(directory: Path) -> None:
        found: dict[str, float] = {}
        for component in load_bundle(conditioned):
            samples, others = (load_held_out(r, component.name) for r in (before, after))
            for output in samples.outputs[0]:
                if f"{component.name}/{output}" in moved:
                    continue
                reference, test = samples.used(samples.outputs, output), others.used(others.outputs, output)
                same = len(samples.feeds) == len(others.feeds) and reference.shape == test.shape
                decibels = min(EXACT_DB, sqnr_db(reference, test)) if same else -EXACT_DB
                if decibels < LEAST_DB:
                    raise VerificationError(
                        f"conditioned float is {decibels:.1f} dB from float, less than {LEAST_DB:.0f} dB",
                        where=f"component {component.name}, output {output}",
                        fix="take the rewrites out of the recipe one by one, and report the one to blame",
                    )
                found[component.name] = min(round(decibels, 1), found.get(component.name, EXACT_DB))
        write_json(directory / EQUIVALENCE_FILE, found)

    inputs = {"before": before.digest, "after": after.digest, "moved": sorted(moved)}
    return context.record("equivalence", context.store.run("equivalence", inputs, produce, code=CODE))


def load_rewrites(conditioned: StageResult) -> list[dict[str, Any]]:
    """What `condition` did: ``rewrite``, ``streams``, ``components``, ``crossings`` of each step."""
    document: list[dict[str, Any]] = json.loads((conditioned.path / REWRITES_FILE).read_text(encoding="utf-8"))
    return document


def load_equivalence(result: StageResult) -> dict[str, float]:
    """Read ``equivalence.json``."""
    document: dict[str, float] = json.loads((result.path / EQUIVALENCE_FILE).read_text(encoding="utf-8"))
    return document
