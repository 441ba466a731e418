"""Integers of five dimensions on matrices: the same integers, and less time by the compiler."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from pocketport.targets.qualcomm import backend, lower

from .pivots import Sketch, run_on_cpu
from .test_compile import emulated_db, port, request_for


def boxes(s: Sketch, rows: int = 40, columns: int = 24) -> str:
    """A decoder of boxes: three anchors a cell, centers and sizes and scores of each."""
    data = s.input("x", s.rng.standard_normal((1, 32, rows, columns)).astype(np.float32))
    y = s.op("Conv", data, s.weight(3 * 7, 32, 1, 1, scale=0.3))
    y = s.op("Reshape", s.op("Transpose", y, perm=[0, 2, 3, 1]), s.shape(1, rows, columns, 3, 7))
    center = s.op("Split", s.op("Sigmoid", y), s.shape(2, 2, 3), outputs=3, axis=4)
    size, scores = center[:-1] + "1", center[:-1] + "2"
    grid = s.constant(s.rng.uniform(0, 40, (1, rows, columns, 1, 2)).astype(np.float32))
    center = s.op("Add", s.op("Mul", center, s.constant(np.float32(2))), grid)
    size = s.op("Mul", s.op("Mul", size, size), s.constant(s.rng.uniform(1, 9, (1, 1, 1, 3, 2)).astype(np.float32)))
    return s.op("Reshape", s.op("Concat", center, size, scores, axis=4), s.shape(1, 3 * rows * columns, 7))


def frames(s: Sketch) -> str:
    """A residual block over a video: what is added was computed in its dimensions."""
    data = s.input("x", s.rng.standard_normal((1, 8, 4, 14, 14)).astype(np.float32))
    y = s.op("Conv", data, s.weight(8, 8, 3, 3, 3, scale=0.1), pads=[1] * 6)
    z = s.op("Conv", s.op("Relu", y), s.weight(8, 8, 3, 3, 3, scale=0.1), pads=[1] * 6)
    return s.op("Add", y, z)


def ranks(path: Path) -> dict[str, int]:
    """The most dimensions that each kind of op computes on."""
    model = onnx.shape_inference.infer_shapes(onnx.load(path))
    known = {v.name: len(v.type.tensor_type.shape.dim) for v in (*model.graph.value_info, *model.graph.output)}
    found: dict[str, int] = {}
    for node in model.graph.node:
        found[node.op_type] = max(found.get(node.op_type, 0), *(known[name] for name in node.output))
    return found


@pytest.mark.parametrize("bits", [8, 16])
def test_boxes_are_decoded_on_matrices(bits: int, tmp_path: Path) -> None:
    sketch = Sketch()
    model = sketch.pivot(boxes(sketch), bits=bits)
    lowered = backend.lower(request_for(tmp_path, model))
    on = ranks(lowered.paths["onnx"])
    assert {op: on[op] for op in ("Sigmoid", "Split", "Mul", "Add", "Concat")} == dict.fromkeys(
        ("Sigmoid", "Split", "Mul", "Add", "Concat"), 2
    )
    assert on["Reshape"] == 3


@pytest.mark.parametrize("bits", [8, 16])
def test_numbers_stay(bits: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What onnxruntime computes of the lowered graph is what it computes of the graph that was lowered without."""
    sketch = Sketch()
    model = sketch.pivot(boxes(sketch), bits=bits)
    fast = backend.lower(request_for(tmp_path / "fast", model)).paths["onnx"]
    monkeypatch.setattr(lower, "FASTER", ())
    slow = backend.lower(request_for(tmp_path / "slow", model)).paths["onnx"]
    (expected,), (found,) = (run_on_cpu(path, feeds(sketch, path)).values() for path in (slow, fast))
    np.testing.assert_array_equal(found, expected)


def feeds(sketch: Sketch, path: Path) -> dict[str, np.ndarray]:
    """The sketch's input as the integers that a lowered graph takes."""
    (source,) = onnx.load(path).graph.input
    kind = onnx.helper.tensor_dtype_to_np_dtype(source.type.tensor_type.elem_type)
    if kind == np.float32:
        return {source.name: sketch.feeds["x"]}
    limits = np.iinfo(kind)
    return {source.name: np.random.default_rng(1).integers(limits.min, limits.max, sketch.feeds["x"].shape, kind)}


def test_floats_and_frames_stay(tmp_path: Path) -> None:
    sketch = Sketch()
    model = sketch.model(boxes(sketch))
    assert ranks(backend.lower(request_for(tmp_path / "float", model)).paths["onnx"])["Sigmoid"] == 5
    sketch = Sketch()
    model = sketch.pivot(frames(sketch), bits=8)
    assert ranks(backend.lower(request_for(tmp_path / "frames", model)).paths["onnx"])["Add"] == 5


def test_the_compiler_says_less(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime_qnn")
    sketch = Sketch()
    model = sketch.pivot(boxes(sketch), bits=16)
    request = request_for(tmp_path / "fast", model)
    fast = backend.estimate(request, backend.lower(request))["sa8255p_us"]
    assert emulated_db(request, port(request), sketch) > 40
    monkeypatch.setattr(lower, "FASTER", ())
    request = request_for(tmp_path / "slow", model)
    slow = backend.estimate(request, backend.lower(request))["sa8255p_us"]
    assert fast < 0.5 * slow
