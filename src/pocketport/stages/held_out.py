"""Held-out feeds of every component with what the float graphs make of them: made once, used by every verification."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pocketport.calibration.storage import read_npz, write_npz
from pocketport.compress.executors.ort_executor import OrtExecutor
from pocketport.compress.families.registry import family_named
from pocketport.data import Feeds, load_data
from pocketport.stages.context import Context
from pocketport.stages.ingest import load_bundle
from pocketport.store import StageResult

FEEDS_PER_COMPONENT = 4


@dataclass(frozen=True)
class HeldOut:
    """One component's samples: what goes in, what comes out in float, and where outputs hold padding.

    `rows` maps an output to (axis, first, last) of what is used of it; outputs that are not named are used whole.
    """

    feeds: list[Feeds]
    outputs: list[Mapping[str, NDArray[np.generic]]]
    rows: list[Mapping[str, tuple[int, int, int]]]

    def used(self, results: Sequence[Mapping[str, NDArray[np.generic]]], key: str) -> NDArray[np.float64]:
        """One output of every sample without its padding, flat, float64."""
        parts = []
        for result, rows in zip(results, self.rows, strict=True):
            array = np.asarray(result[key], np.float64)
            if key in rows:
                axis, first, last = rows[key]
                array = array.take(range(first, last), axis=axis)
            parts.append(array.ravel())
        return np.concatenate(parts)


def collect_held_out(context: Context, ingested: StageResult, name: str = "held-out") -> StageResult:
    """``<component>.npz`` with the first few feeds that calibration does not see, and the float results.

    `name` is the stage's in the run's record.
    """
    bundle = load_bundle(ingested)
    data = load_data(bundle, context.request)
    context.progress.start(name, "run float on held-out samples", None)

    def produce(directory: Path) -> None:
        family = family_named(bundle.family)
        feeds: dict[str, list[Feeds]] = {}
        for name, values in data.held_out():
            if len(feeds.setdefault(name, [])) < FEEDS_PER_COMPONENT:
                feeds[name].append(values)
        for name, samples in feeds.items():
            executor = OrtExecutor(bundle[name].graph)
            arrays: dict[str, NDArray[np.generic]] = {}
            for index, values in enumerate(samples):
                arrays |= {f"{index}|in|{key}": np.asarray(value) for key, value in values.items()}
                results = executor.run(values)
                arrays |= {f"{index}|out|{key}": value for key, value in results.items()}
                if family is not None:
                    rows = family.meaningful_rows(name, values, results)
                    arrays |= {f"{index}|rows|{key}": np.array(cut, np.int32) for key, cut in rows.items()}
            write_npz(directory / f"{name}.npz", arrays)

    inputs = {"bundle": ingested.digest, "data": data.fingerprint, "count": FEEDS_PER_COMPONENT}
    code = ("compress", "calibration")
    return context.record(name, context.store.run("held-out", inputs, produce, code=code, packages=("onnxruntime",)))


def load_held_out(result: StageResult, component: str) -> HeldOut:
    """Read one component's samples."""
    arrays = read_npz(result.path / f"{component}.npz")
    found = HeldOut([], [], [])
    for index in sorted({int(key.partition("|")[0]) for key in arrays}):
        parts: dict[str, dict[str, NDArray[np.generic]]] = {"in": {}, "out": {}, "rows": {}}
        for key, array in arrays.items():
            number, kind, name = key.split("|", 2)
            if int(number) == index:
                parts[kind][name] = array
        found.feeds.append(parts["in"])
        found.outputs.append(parts["out"])
        found.rows.append({name: (int(cut[0]), int(cut[1]), int(cut[2])) for name, cut in parts["rows"].items()})
    return found
