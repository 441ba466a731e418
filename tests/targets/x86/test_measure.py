"""Choosing and measuring, with engines whose times are known."""

import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from pocketport.errors import ToolchainError, UsageError
from pocketport.files import sha256_path, size_of
from pocketport.targets import conformance_graphs as graphs
from pocketport.targets.contract import Artifact, Target
from pocketport.targets.x86 import target as hosts
from pocketport.targets.x86.choose import Trial, try_engines
from pocketport.targets.x86.measure import arbitrary_feeds, interleaved, measure, peak_resident_bytes
from pocketport.targets.x86.settings import ONNX, OPENVINO_IR


class Sleeper:
    """Takes `seconds` a run, and the first run a hundred times as long."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.runs = seconds, 0

    def run(self, feeds: object) -> dict[str, NDArray[np.generic]]:
        time.sleep(self.seconds * (1 if self.runs else 100))
        self.runs += 1
        return {}

    def close(self) -> None: ...


@pytest.fixture
def pivot(tmp_path: Path) -> Path:
    path = tmp_path / "cnn.onnx"
    onnx.save(graphs.convolutional().model, path)
    return path


def test_warm_up_is_discarded_and_turns_are_taken() -> None:
    slow, fast = Sleeper(0.002), Sleeper(0.0005)
    times = interleaved({"slow": slow, "fast": fast}, {}, runs=5, warmup=1)
    assert slow.runs == fast.runs == 6
    assert times["slow"].shape == (5,)
    assert 2.0 <= np.median(times["slow"]) < 100
    assert np.median(times["fast"]) < np.median(times["slow"])


def test_no_runs_are_an_error() -> None:
    with pytest.raises(UsageError):
        interleaved({}, {}, runs=0, warmup=0)


@pytest.mark.parametrize(
    ("milliseconds", "decibels", "choice"),
    [
        ((2.0, 1.0), (90.0, 80.0), OPENVINO_IR),
        ((2.0, 1.0), (90.0, 30.0), ONNX),
        ((1.02, 1.0), (90.0, 90.0), ONNX),  # a tie
        ((1.0, 2.0), (20.0, 30.0), OPENVINO_IR),  # neither is faithful
    ],
)
def test_the_fastest_faithful_engine_is_chosen(
    milliseconds: tuple[float, float], decibels: tuple[float, float], choice: str
) -> None:
    kinds = (ONNX, OPENVINO_IR)
    low, fidelity = dict(zip(kinds, milliseconds, strict=True)), dict(zip(kinds, decibels, strict=True))
    assert Trial(low, {kind: 10.0 for kind in kinds}, fidelity, 40.0).choice == choice


def test_a_trial_runs_every_artifact(pivot: Path) -> None:
    trial = try_engines(pivot, {ONNX: pivot})
    assert trial.choice == ONNX
    assert trial.fidelity_db[ONNX] > 100
    assert trial.bound_db == 40.0  # a float graph is not sensitive to the last bit


def test_feeds_are_the_pivots_shapes_and_always_the_same(pivot: Path) -> None:
    first, second = arbitrary_feeds(pivot), arbitrary_feeds(pivot)
    assert {name: array.shape for name, array in first.items()} == {"image": (1, 3, 16, 16)}
    np.testing.assert_array_equal(first["image"], second["image"])


def test_figures_have_a_spread_and_a_source(pivot: Path) -> None:
    artifact = Artifact(pivot, ONNX, size_of(pivot), sha256_path(pivot))
    latency, memory = measure("main", artifact, Target("x86", "generic"), arbitrary_feeds(pivot), runs=5, warmup=1)
    assert (latency.name, latency.unit, memory.name, memory.unit) == ("main_latency", "ms", "main_peak_memory", "bytes")
    assert latency.low is not None and latency.high is not None
    assert 0 < latency.low <= latency.value <= latency.high
    assert hosts.cpu_model() in latency.provenance.detail and "median of 5 runs" in latency.provenance.detail
    assert memory.value > 10e6


def test_peak_memory_sees_a_short_allocation() -> None:
    before = peak_resident_bytes()
    assert before is not None
    np.ones(1 << 26, np.uint8).sum()
    after = peak_resident_bytes()
    assert after is not None and after >= before


def test_a_host_without_the_instructions_is_refused(pivot: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosts, "_host", lambda: ("Some CPU", frozenset({"avx2", "fma"})))
    assert hosts.lacking(Target("x86", "avx2")) == ()
    artifact = Artifact(pivot, ONNX, size_of(pivot), sha256_path(pivot))
    with pytest.raises(ToolchainError, match="avx512_vnni"):
        measure("main", artifact, Target("x86", "avx512-vnni"), arbitrary_feeds(pivot))


def test_threads_follow_omp_num_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert hosts.threads() == 1
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert hosts.threads() >= 1
