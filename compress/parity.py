"""The parity gate: before anything is quantized, the float graphs must reproduce the model they were made from.

The other side is the torch model for checkpoints, and the untouched file for ONNX. A float port that is already
worse than the original would make every later figure meaningless.
"""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from pocketport.calibration.metrics import sqnr_db
from pocketport.compress.bundle import Component, ModelBundle
from pocketport.compress.executors.ort_executor import OrtExecutor
from pocketport.compress.families.registry import Pair, family_named
from pocketport.compress.graph import clone_graph, load_graph
from pocketport.compress.ingest import path_of
from pocketport.compress.random_inputs import random_input
from pocketport.compress.sources.open import open_source
from pocketport.errors import UsageError, VerificationError

LEAST_SQNR_DB = 60.0  # float32 against float32 gives 90 and more; a wrong epsilon or mask gives less than 60
SATURATING = frozenset({"Sigmoid", "Softmax"})
MOVING = frozenset({"Identity", "Reshape"})
SAMPLE_SEED = 7
SAMPLE_COUNT = 2


@dataclass(frozen=True)
class ParityFigure:
    """One output over all samples: its worst SQNR (dB), its largest absolute difference, in how many comparisons.

    Integer outputs (the tokens of generated text) are compared for equality: +inf or −inf dB.
    """

    component: str
    tensor: str
    sqnr_db: float
    max_abs: float
    comparisons: int


@dataclass(frozen=True)
class ParityReport:
    """All figures, each at least `least_sqnr_db`."""

    figures: tuple[ParityFigure, ...]
    least_sqnr_db: float

    def to_json(self) -> dict[str, Any]:
        """The document form; infinite SQNR (bit-equal) is None."""
        figures = [{**asdict(f), "sqnr_db": f.sqnr_db if math.isfinite(f.sqnr_db) else None} for f in self.figures]
        return {"least_sqnr_db": self.least_sqnr_db, "figures": figures}


def check_parity(bundle: ModelBundle, source: str | Path) -> ParityReport:
    """Compare the bundle's float graphs with what `source` computes.

    Args:
        bundle: what `ingest(source)` gave, not quantized.
        source: the checkpoint's folder, the ONNX file, or ``"reference"``.

    Raises:
        VerificationError: an output differs; the message names the worst one and by how much.
    """
    path = path_of(source)
    pairs = _pairs(bundle, path)
    worst: dict[tuple[str, str], ParityFigure] = {}
    for component, tensor, expected, found in pairs:
        quality, distance = _compared(expected, found)
        old = worst.get((component, tensor), ParityFigure(component, tensor, math.inf, 0.0, 0))
        worst[component, tensor] = ParityFigure(
            component, tensor, min(old.sqnr_db, quality), max(old.max_abs, distance), old.comparisons + 1
        )
    report = ParityReport(tuple(worst.values()), LEAST_SQNR_DB)
    bad = min(report.figures, key=lambda f: f.sqnr_db)
    if not bad.sqnr_db >= LEAST_SQNR_DB:
        raise VerificationError(
            f"{bad.tensor} differs from the original: {bad.sqnr_db:.1f} dB (at least {LEAST_SQNR_DB:.0f} needed), by up to {bad.max_abs:.3g}",
            where=f"parity of {bundle.name}, {bad.component}", fix="report this model: its float port is not exact",
        )  # fmt: skip
    return report


def _pairs(bundle: ModelBundle, path: Path) -> Iterator[Pair]:
    family = family_named(bundle.family)
    if family is not None:
        return family.compare(bundle, open_source(path))
    if bundle.family == "onnx":
        files = bundle.config.get("files", {"main": path.name})
        folder = path if path.is_dir() else path.parent
        return chain.from_iterable(_compare_onnx(bundle[name], folder / file) for name, file in files.items())
    if bundle.family == "exported":
        from pocketport.compress.importers.exported_program import compare_exported

        return compare_exported(bundle, path)
    raise UsageError("there is no parity check for it", where=f"family {bundle.family}", fix="ingest the original")


def _compared(expected: NDArray[Any], found: NDArray[Any]) -> tuple[float, float]:
    """SQNR (dB) and largest absolute difference."""
    if expected.shape != found.shape:
        return -math.inf, math.inf
    distance = float(np.abs(np.asarray(expected, np.float64) - np.asarray(found, np.float64)).max(initial=0.0))
    if expected.dtype.kind in "iub":
        return (math.inf if distance == 0.0 else -math.inf), distance
    return sqnr_db(expected, found), distance


def _compare_onnx(component: Component, path: Path) -> Iterator[Pair]:
    """The file as it came against the simplified graph, on random inputs."""
    graph = component.graph
    names = [str(v.name) for v in graph.graph.outputs]
    source = load_graph(path)
    wide = {v.name for v in source.graph.inputs if v.dtype == ir.DataType.INT64}
    ends = [[_saturation(output)[0] is not None for output in model.graph.outputs] for model in (source, graph)]
    both = [all(pair) for pair in zip(*ends, strict=True)]
    original, ported = (OrtExecutor(_unsaturated(model, both)) for model in (source, graph))
    rng = np.random.default_rng(SAMPLE_SEED)
    for _ in range(SAMPLE_COUNT):
        feeds = {str(value.name): random_input(value, rng) for value in graph.graph.inputs}
        widened = {name: array.astype(np.int64) if name in wide else array for name, array in feeds.items()}
        expected, found = original.run(widened), ported.run(feeds)
        for name, before, after in zip(names, original.outputs, ported.outputs, strict=True):
            yield component.name, name, expected[before], found[after]


def _saturation(output: ir.Value) -> tuple[ir.Node | None, list[ir.Node]]:
    """The Sigmoid or Softmax that an output comes from, None if it is another op; and what moves it behind that, last first."""
    node, moves = output.producer(), list[ir.Node]()
    while node is not None and node.op_type in MOVING and node.inputs[0] is not None:
        moves.append(node)
        node = node.inputs[0].producer()
    known = node is not None and node.op_type in SATURATING and node.inputs[0] is not None
    return node if known else None, moves


def _unsaturated(model: ir.Model, which: list[bool]) -> ir.Model:
    """A copy that gives, in the place of a final Sigmoid or Softmax, what goes into it, for the outputs of `which`.

    On inputs without meaning these outputs may all be near 0, where float32 kernels keep few digits.
    """
    copy = clone_graph(model)
    for index, output in enumerate(copy.graph.outputs):
        node, moves = _saturation(output)
        value = None if node is None else node.inputs[0]
        if value is None or not which[index]:
            continue
        for number, move in enumerate(reversed(moves)):  # anew: others may read what they give
            again = ir.node(move.op_type, [value, *move.inputs[1:]])
            copy.graph.append(again)
            value = again.outputs[0]
            value.name, value.type = f"{output.name}.unsaturated{number}", output.type
        copy.graph.outputs[index] = value
    return copy
