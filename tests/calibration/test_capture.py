"""One calibration pass against numpy on the same intermediates."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from pocketport.calibration import capture
from pocketport.calibration.capture import Selection, calibrate
from pocketport.calibration.observers import Histogram
from pocketport.calibration.statistics import Statistics, side_by_side
from pocketport.compress.builder import GraphBuilder
from pocketport.errors import InputError, UsageError


def two_layers() -> ir.Model:
    rng = np.random.default_rng(0)
    g = GraphBuilder("main")
    x = g.input("x", (4, 6))
    w = g.weight("w", rng.standard_normal((5, 6)).astype(np.float32))
    h = g.node("Relu", [g.node("Gemm", [x, w], "first", transB=1)], "hidden")
    h = g.reshape(h, (5, 4), "moved")
    g.output(g.node("MatMul", [h, g.weight("v", rng.standard_normal((4, 3)).astype(np.float32))], "second", output="y"))
    return g.finish()


def samples(count: int = 3) -> list[tuple[str, dict[str, np.ndarray]]]:
    rng = np.random.default_rng(1)
    return [("main", {"x": rng.standard_normal((4, 6)).astype(np.float32)}) for _ in range(count)]


def hidden(graph: ir.Model, x: np.ndarray) -> np.ndarray:
    return np.maximum(x @ graph.graph.initializers["w"].const_value.numpy().T, 0)  # type: ignore[union-attr]


@pytest.mark.parametrize("chunk_bytes", [1, 1 << 20])
def test_histograms_and_moments_are_those_of_numpy(monkeypatch: pytest.MonkeyPatch, chunk_bytes: int) -> None:
    monkeypatch.setattr(capture, "CHUNK_BYTES", chunk_bytes)
    graph, feeds = two_layers(), samples()
    statistics = calibrate({"main": graph}, feeds, hessians={"main": ["moved"]})
    inputs = np.stack([f["x"] for _, f in feeds])
    expected = Histogram()
    expected.update(inputs)
    assert np.array_equal(statistics.histograms["main/x"].counts, expected.counts)
    activations = np.stack([hidden(graph, x) for x in inputs])
    h = statistics.histograms["main/hidden"]
    assert (h.minimum, h.total) == (0.0, activations.size)
    assert h.maximum == pytest.approx(activations.max(), rel=1e-6)
    rows = activations.reshape(-1, 4)
    moved = statistics.moments["main/moved"]
    assert moved.rows == len(rows) and moved.full is not None
    assert np.allclose(moved.full, rows.T @ rows, rtol=1e-4)
    assert np.allclose(moved.diagonal, np.square(rows).sum(0), rtol=1e-5)
    first = statistics.moments["main/x"]
    assert first.full is None and np.allclose(first.diagonal, np.square(inputs).sum((0, 1)), rtol=1e-5)
    assert statistics.samples == {"main": 3}
    assert "main/moved" not in statistics.histograms  # a Reshape repeats the values of its input


@pytest.mark.parametrize("chunk_bytes", [1, 1 << 20])
def test_moments_of_tensors_side_by_side(monkeypatch: pytest.MonkeyPatch, chunk_bytes: int) -> None:
    """Even where no two tensors fit into one run; padding is left out."""
    monkeypatch.setattr(capture, "CHUNK_BYTES", chunk_bytes)
    rng = np.random.default_rng(3)
    g = GraphBuilder("main")
    x, mask = g.input("x", (4, 6)), g.input("attention_mask", (4,))
    a, between, b = (g.node(op, [x], name) for op, name in (("Relu", "a"), ("Tanh", "between"), ("Neg", "b")))
    for value in (a, between, b, x):
        weight = g.weight(f"{value.name}.weight", rng.standard_normal((6, 2)).astype(np.float32))
        g.output(g.node("MatMul", [value, weight], f"{value.name}.y"))
    g.output(g.node("Neg", [mask], "negated"))
    values = rng.standard_normal((3, 4, 6)).astype(np.float32)
    masked = np.array([0, 1, 1, 1], np.float32)
    feeds = [("main", {"x": v, "attention_mask": masked}) for v in values]
    names = [side_by_side(together) for together in (("a", "b"), ("b", "x"), ("x", "between"))]
    statistics = calibrate({"main": g.finish()}, feeds, hessians={"main": names})
    rows = values[:, 1:].reshape(-1, 6)
    known = {"a": np.maximum(rows, 0), "b": -rows, "x": rows, "between": np.tanh(rows)}
    for name in names:
        expected = np.concatenate([known[part] for part in name.split(" + ")], axis=1)
        found = statistics.moments[f"main/{name}"]
        assert found.rows == len(rows) == 9 and found.full is not None
        np.testing.assert_allclose(found.full, expected.T @ expected, rtol=1e-4, atol=1e-5)
    assert all(statistics.moments[f"main/{part}"].rows == 9 for part in known)  # each once, in whatever runs


def test_more_samples_take_no_more_memory() -> None:
    few, many = (calibrate({"main": two_layers()}, samples(n)) for n in (2, 40))
    size = [sum(h.counts.nbytes for h in s.histograms.values()) for s in (few, many)]
    assert size[1] <= 2048 * 8 * len(many.histograms) and set(few.histograms) == set(many.histograms)


def test_statistics_round_trip_with_the_same_bytes(tmp_path: Path) -> None:
    statistics = calibrate({"main": two_layers()}, samples(), hessians={"main": ["x"]})
    statistics.save(tmp_path / "one.npz")
    Statistics.load(tmp_path / "one.npz").save(tmp_path / "two.npz")
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()
    (tmp_path / "three.npz").write_bytes((tmp_path / "one.npz").read_bytes()[:200])
    with pytest.raises(InputError):
        Statistics.load(tmp_path / "three.npz")


def test_progress_and_mistakes() -> None:
    seen: list[int] = []
    calibrate({"main": two_layers()}, samples(), progress=seen.append)
    assert seen == [1, 2, 3]
    with pytest.raises(UsageError, match="no calibration data"):
        calibrate({"main": two_layers()}, [])
    with pytest.raises(UsageError, match="no component 'vision'"):
        calibrate({"main": two_layers()}, [("vision", {})])
    with pytest.raises(InputError, match="refuses the calibration feed"):
        calibrate({"main": two_layers()}, [("main", {"x": np.zeros((2, 2), np.float32)})])
    with pytest.raises(InputError) as caught:
        calibrate({"main": two_layers()}, [("main", {"x": np.full((4, 6), np.nan, np.float32)})])
    assert caught.value.where == "tensor main/x"


@pytest.mark.parametrize("name", ["attention_bias", "attention_mask"])
def test_padding_is_left_out_of_the_moments(name: str) -> None:
    g = GraphBuilder("main")
    x, bias = g.input("x", (4, 6)), g.input(name, (1, 1, 4) if name == "attention_bias" else (4,))
    y = g.node("Gemm", [x, g.weight("w", np.ones((2, 6), np.float32))], "y", transB=1)
    g.output(y)
    g.output(g.node("Neg", [bias], "negated"))
    values = np.arange(24, dtype=np.float32).reshape(4, 6)
    masks = {"attention_bias": [[[-100.0, 0.0, 0.0, 0.0]]], "attention_mask": [0.0, 1.0, 1.0, 1.0]}
    feeds = {"x": values, name: np.array(masks[name], np.float32)}
    statistics = calibrate({"main": g.finish()}, [("main", feeds)], hessians={"main": ["x"]})
    moment = statistics.moments["main/x"]
    assert moment.rows == 3 and np.allclose(moment.full, values[1:].T @ values[1:])
    assert statistics.histograms["main/x"].total == 24


def test_channels_of_layers_inputs(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    g = GraphBuilder("main")
    h = g.node("Relu", [g.input("x", (1, 3, 4, 5))], "hidden")
    g.output(
        g.node("Conv", [h, g.weight("w", rng.standard_normal((2, 3, 1, 1)).astype(np.float32))], "conv", output="y")
    )
    graph = g.finish()
    x = rng.standard_normal((4, 1, 3, 4, 5)).astype(np.float32)
    statistics = calibrate({"main": graph}, [("main", {"x": v}) for v in x], hessians={"main": ["hidden"]})
    statistics.save(tmp_path / "statistics.npz")
    loaded = Statistics.load(tmp_path / "statistics.npz")
    seen = np.maximum(x, 0)[:, 0].transpose(0, 2, 3, 1).reshape(-1, 3)
    assert np.array_equal(loaded.channels["main/hidden"].low, seen.min(axis=0))
    assert np.array_equal(loaded.channels["main/hidden"].high, seen.max(axis=0))
    moment = loaded.moments["main/hidden"]
    assert moment.rows == len(seen) and moment.full is not None
    assert np.allclose(moment.full, seen.T @ seen, rtol=1e-5)
    assert np.allclose(moment.diagonal, np.square(seen).sum(axis=0), rtol=1e-5)


def test_the_number_of_threads_changes_no_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capture, "CHUNK_BYTES", 1)
    for threads in (1, 3):
        statistics = calibrate({"main": two_layers()}, samples(12), hessians={"main": ["x"]}, threads=threads)
        statistics.save(tmp_path / f"{threads}.npz")
    assert (tmp_path / "1.npz").read_bytes() == (tmp_path / "3.npz").read_bytes()


def test_a_selection_keeps_what_it_names() -> None:
    selection = Selection(frozenset({"x", "hidden"}), frozenset({"hidden"}))
    everything = calibrate({"main": two_layers()}, samples())
    chosen = calibrate({"main": two_layers()}, samples(), only={"main": selection})
    assert set(chosen.histograms) == {"main/x", "main/hidden"} and set(chosen.moments) == {"main/x"}
    for name, histogram in chosen.histograms.items():
        known = everything.histograms[name]
        assert histogram.minimum == pytest.approx(known.minimum, rel=1e-5, abs=1e-6)
        assert histogram.maximum == pytest.approx(known.maximum, rel=1e-5)
    assert chosen.histograms["main/x"].total == 0 and chosen.histograms["main/hidden"].total == 60
    assert np.allclose(chosen.moments["main/x"].diagonal, everything.moments["main/x"].diagonal)
