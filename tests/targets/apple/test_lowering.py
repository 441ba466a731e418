"""Both Apple formats, op by op, against onnxruntime."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest

from pocketport.targets.apple.coreml_program import _coremltools
from pocketport.targets.contract import CompileRequest, Target
from pocketport.workers import Worker

from .both_formats import Results, bench, both_formats
from .op_graphs import every_op

pytest.importorskip("coreai")
pytest.importorskip("coremltools")

FLOAT16_DB = 50.0
MODEL, FEEDS = every_op()
OUTPUTS = [o.name for o in MODEL.graph.output]
QUANTIZED = [o for o in OUTPUTS if o.startswith("DequantizeLinear")]


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    with bench("apple ops") as worker:
        yield worker


@pytest.fixture(scope="module")
def results(worker: Worker, tmp_path_factory: pytest.TempPathFactory) -> Results:
    pivot = tmp_path_factory.mktemp("ops") / "every.onnx"
    onnx.save(MODEL, pivot)
    return both_formats(worker, pivot, OUTPUTS, FEEDS)


@pytest.mark.parametrize("kind", ["aimodel", "mlpackage"])
@pytest.mark.parametrize("output", [o for o in OUTPUTS if o not in QUANTIZED])
def test_every_op_computes_what_onnx_says(kind: str, output: str, results: Results) -> None:
    expected, found = results.expected[output].astype(np.float64), results.found[kind][output].astype(np.float64)
    assert found.shape == expected.shape
    noise = np.square(expected - found).sum()
    assert noise == 0 or 10 * np.log10(np.square(expected).sum() / noise) >= FLOAT16_DB


def test_quantized_activations_are_exact_integers(results: Results) -> None:
    """Steps of 1/32 are exact in float16: each format must give exactly one of the 256 values, nearly always ONNX's."""
    for found in results.found.values():
        for output in QUANTIZED:
            steps, expected = found[output] / 0.03125, results.expected[output] / 0.03125
            assert np.array_equal(steps, np.rint(steps))
            assert np.abs(steps - expected).max() <= 1  # an input on the edge of two steps, rounded to float16 first
            assert (steps != expected).mean() < 0.05


def test_weights_stay_compressed(results: Results) -> None:
    """Every integer weight of the pivot is found again in both files, as integers of its width."""
    weights = 4 * 16 * 32
    for artifact in results.artifacts.values():
        assert int(artifact.facts["int4_elements"]) >= weights
        assert int(artifact.facts["int8_elements"]) >= weights + 4 * 8 * 9


def test_files_carry_no_date_or_machine(results: Results) -> None:
    for artifact in results.artifacts.values():
        for file in artifact.path.rglob("*"):
            content = file.read_bytes() if file.is_file() else b""
            assert b"creationDate" not in content and b"conversion_date" not in content
            assert str(Path.cwd()).encode() not in content


def test_preparing_for_this_host_does_not_change_the_meaning(results: Results) -> None:
    """The file's own program, run as it is, gives what the prepared one gives, but for its float16 accumulation."""
    feeds = {n: a.astype(np.float16 if a.dtype.kind == "f" else a.dtype) for n, a in FEEDS.items()}
    path = results.artifacts["aimodel"].path
    with Worker("pocketport.targets.apple.coreai_runtime:OpenProgram", path, label="as it is") as worker:
        raw = worker.call("run", feeds)
    for output in OUTPUTS:
        signal, noise = (
            raw[output].astype(np.float64),
            raw[output].astype(np.float64) - results.found["aimodel"][output],
        )
        assert np.square(noise).sum() <= 1e-4 * np.square(signal).sum(), output


def test_wrong_feeds_are_refused_by_name(worker: Worker, results: Results, tmp_path: Path) -> None:
    from pocketport.errors import ToolchainError

    onnx.save(MODEL, tmp_path / "every.onnx")
    request = CompileRequest("main", tmp_path / "every.onnx", Target("apple", "a17-pro"), tmp_path, tmp_path)
    for artifact in results.artifacts.values():
        with pytest.raises(ToolchainError, match="image"):
            worker.call("run_twice", artifact, request, {**FEEDS, "image": np.zeros((1, 2), np.float32)})


def test_progress_bars_hold_nothing_that_outlives_a_worker() -> None:
    from tqdm import tqdm
    from tqdm.std import TqdmDefaultWriteLock

    _coremltools()
    assert not isinstance(tqdm.get_lock(), TqdmDefaultWriteLock)
