"""Forms that are slow on the accelerator: equal numbers by onnxruntime and the emulator, and less time by the compiler."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocketport.compress.graph import inferred
from pocketport.targets.qualcomm import backend, lower, slow_forms

from .pivots import Sketch, run_on_cpu
from .test_compile import emulated_db, port, request_for

Build = Callable[[Sketch], str]


def features(s: Sketch, channels: int, rows: int, columns: int) -> str:
    data = s.input("x", s.rng.standard_normal((1, 16, rows, columns)).astype(np.float32))
    return s.op("Relu", s.op("Conv", data, s.weight(channels, 16, 1, 1, scale=0.25)))


def tall_mean(s: Sketch) -> str:
    return s.op("GlobalAveragePool", features(s, 64, 64, 32))


def wide_maximum(s: Sketch) -> str:
    return s.op("MaxPool", features(s, 384, 8, 6), kernel_shape=[13, 13], pads=[6] * 4, strides=[1, 1])


def repeated_constant(s: Sketch) -> str:
    data = s.op("Sigmoid", s.input("x", s.rng.standard_normal((1, 2944, 9, 2)).astype(np.float32)))
    return s.op("Mul", data, s.constant(s.rng.uniform(0.5, 1.5, (1, 2944, 1, 2)).astype(np.float32)))


def rectified(s: Sketch, *shape: int) -> str:
    y = features(s, 64, 128, 128)
    for _ in range(2):
        y = s.op("Conv", y, s.weight(64, 64, 3, 3, scale=0.05), pads=[1] * 4)
        y = s.op("Max", y, s.op("Mul", s.constant(s.rng.uniform(0, 0.3, shape).astype(np.float32)), y))
    return y


def shuffled(s: Sketch) -> str:
    y = features(s, 64, 80, 80)
    y = s.op("Transpose", s.op("Reshape", y, s.shape(1, 4, 16, 80, 80)), perm=[0, 2, 1, 3, 4])
    return s.op("Reshape", y, s.shape(1, 64, 80, 80))


def square(s: Sketch) -> str:
    return s.op("Pow", features(s, 64, 64, 64), s.constant(np.array(2, np.float32)))


def single_mean(s: Sketch) -> str:
    return s.op("AveragePool", features(s, 96, 64, 64), kernel_shape=[1, 1], strides=[2, 2])


def short_sums(s: Sketch) -> str:
    """Weighted means of nine samples at each place."""
    data = s.op("Sigmoid", s.input("x", s.rng.standard_normal((8, 16, 784, 9)).astype(np.float32)))
    weighted = s.op("Mul", data, s.constant(s.rng.uniform(0, 0.2, (8, 1, 784, 9)).astype(np.float32)))
    return s.op("ReduceSum", weighted, s.shape(-1), keepdims=0)


FORMS: dict[str, tuple[Build, list[str]]] = {
    "tall mean": (tall_mean, ["Conv", "Relu", "ReduceMean"]),
    "wide maximum": (wide_maximum, ["Conv", "Relu", "MaxPool", "MaxPool", "MaxPool"]),
    "shuffle": (shuffled, ["Conv", "Relu", "Conv"]),
    "short sums": (short_sums, ["Sigmoid", "Mul", "Reshape", "MatMul", "Reshape"]),
    "square": (square, ["Conv", "Relu", "Mul"]),
    "single mean": (single_mean, ["Conv", "Relu", "MaxPool"]),
    "rectifier": (lambda s: rectified(s, 64, 1, 1), ["Conv", "Relu", "Conv", "PRelu", "Conv", "PRelu"]),
    "repeated constant": (repeated_constant, ["Sigmoid", "Mul"]),
}


@pytest.fixture(params=sorted(FORMS))
def form(request: pytest.FixtureRequest) -> Iterator[tuple[Sketch, onnx.ModelProto, list[str]]]:
    build, ops = FORMS[request.param]
    sketch = Sketch()
    yield sketch, sketch.model(build(sketch)), ops


def test_numbers_stay(form: tuple[Sketch, onnx.ModelProto, list[str]], tmp_path: Path) -> None:
    sketch, model, ops = form
    lowered = backend.lower(request_for(tmp_path, model))
    assert [n.op_type for n in onnx.load(lowered.paths["onnx"]).graph.node] == ops
    (expected,), (found,) = (run_on_cpu(m, sketch.feeds).values() for m in (model, lowered.paths["onnx"]))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_the_compiler_says_less(
    form: tuple[Sketch, onnx.ModelProto, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime_qnn")
    sketch, model, ops = form
    request = request_for(tmp_path / "fast", model)
    fast = backend.estimate(request, backend.lower(request))["sa8255p_us"]
    assert emulated_db(request, port(request), sketch) > 40
    monkeypatch.setattr(lower, "FASTER", ())
    request = request_for(tmp_path / "slow", model)
    share = 0.95 if "PRelu" in ops else 0.5
    assert fast < share * backend.estimate(request, backend.lower(request))["sa8255p_us"]


@pytest.mark.parametrize(
    "build",
    [
        lambda s: s.op("GlobalAveragePool", features(s, 8, 32, 16)),
        lambda s: s.op("GlobalAveragePool", features(s, 8, 64, 48)),
        lambda s: rectified(s, 1, 1, 128),
        lambda s: s.op("MaxPool", features(s, 8, 20, 20), kernel_shape=[5, 5], pads=[2] * 4, strides=[1, 1]),
        lambda s: s.op("MaxPool", features(s, 8, 20, 20), kernel_shape=[13, 13], pads=[6] * 4, strides=[2, 2]),
        lambda s: s.op("MaxPool", features(s, 8, 20, 20), kernel_shape=[13, 13], pads=[0] * 4, strides=[1, 1]),
        lambda s: s.op("MaxPool", features(s, 8, 20, 20), kernel_shape=[15, 15], pads=[7] * 4, strides=[1, 1]),
    ],
)
def test_what_is_fast_or_no_sum_of_parts_is_left(build: Build, tmp_path: Path) -> None:
    sketch = Sketch()
    model = sketch.model(build(sketch))
    lowered = onnx.load(backend.lower(request_for(tmp_path, model)).paths["onnx"])
    assert [n.op_type for n in lowered.graph.node] == [n.op_type for n in model.graph.node]


@pytest.mark.parametrize(("bits", "least"), [(8, 35), (16, 70)])
def test_integers_are_summed_by_products(bits: int, least: float, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime_qnn")
    sketch = Sketch()
    request = request_for(tmp_path, sketch.pivot(short_sums(sketch), bits=bits))
    ops = [n.op_type for n in onnx.load(backend.lower(request).paths["onnx"]).graph.node]
    assert ops.count("MatMul") == 1 and "ReduceSum" not in ops
    assert emulated_db(request, port(request), sketch) > least


def test_long_sums_and_those_of_other_dimensions_stay(tmp_path: Path) -> None:
    for axis, shape in ((-1, (4, 4, 65)), (1, (4, 4, 9))):
        sketch = Sketch()
        data = sketch.op("Sigmoid", sketch.input("x", sketch.rng.standard_normal(shape).astype(np.float32)))
        model = sketch.model(sketch.op("ReduceSum", data, sketch.shape(axis), keepdims=0))
        lowered = onnx.load(backend.lower(request_for(tmp_path / str(axis), model)).paths["onnx"])
        assert "ReduceSum" in [n.op_type for n in lowered.graph.node]


@pytest.mark.parametrize(("bits", "least"), [(8, 28), (16, 60)])
def test_a_rectifiers_product_is_not_rounded(bits: int, least: float, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime_qnn")
    sketch = Sketch()
    request = request_for(tmp_path, sketch.pivot(rectified(sketch, 64, 1, 1), bits=bits))
    ops = [n.op_type for n in onnx.load(backend.lower(request).paths["onnx"]).graph.node]
    assert ops.count("PRelu") == 2 and "Max" not in ops and "Mul" not in ops
    assert emulated_db(request, port(request), sketch) > least


@pytest.mark.parametrize("bits", [8, 16])
def test_integers_are_shuffled_as_they_are(bits: int, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime_qnn")
    sketch = Sketch()
    pivot = sketch.pivot(shuffled(sketch), bits=bits)
    request = request_for(tmp_path, pivot)
    ops = [n.op_type for n in onnx.load(backend.lower(request).paths["onnx"]).graph.node]
    assert ops.count("Conv") == 2 and "Transpose" not in ops and "Reshape" not in ops
    (expected,), (found,) = (run_on_cpu(m, sketch.feeds).values() for m in (pivot, _shuffles_convolved(pivot)))
    np.testing.assert_array_equal(found, expected)
    assert emulated_db(request, port(request), sketch) > (30 if bits == 8 else 60)


def _shuffles_convolved(pivot: onnx.ModelProto) -> onnx.ModelProto:
    model = inferred(ir.from_proto(pivot))
    slow_forms.convolve_shuffles(model)
    return ir.to_proto(model)


def test_integers_of_a_repeated_constant_are_written_out(tmp_path: Path) -> None:
    sketch = Sketch()
    pivot = sketch.pivot(repeated_constant(sketch), bits=8)
    request = request_for(tmp_path, pivot)
    model = onnx.load(backend.lower(request).paths["onnx"])
    assert max(np.prod(i.dims) for i in model.graph.initializer) == 2944 * 9 * 2
    assert emulated_db(request, port(request), sketch) > 30


@given(st.lists(st.tuples(st.integers(1, 3), st.booleans()), min_size=1, max_size=5), st.integers(0, 4))
def test_only_what_repeats_between_two_dimensions_is_written_out(dims: list[tuple[int, bool]], cut: int) -> None:
    """Written out or not, an op gives the same."""
    noise = np.random.default_rng(0)
    whole = tuple(size for size, _ in dims)
    own = tuple(1 if repeats else size for size, repeats in dims)[min(cut, len(dims) - 1) :]
    sketch = Sketch()
    data = sketch.input("x", noise.standard_normal(whole).astype(np.float32))
    before = sketch.model(sketch.op("Sub", data, sketch.constant(noise.standard_normal(own).astype(np.float32))))
    model = ir.from_proto(before)
    slow_forms.write_out_constants(model)
    inner = [i for i, size in enumerate((1,) * (len(whole) - len(own)) + own) if size > 1]
    written = any(
        value.const_value is not None and tuple(value.shape or ()) == whole
        for value in model.graph.initializers.values()
    )
    assert written or not any(
        size == 1 < whole[i]
        for i, size in enumerate((1,) * (len(whole) - len(own)) + own)
        if inner and inner[0] < i < inner[-1]
    )
    (expected,), (found,) = (run_on_cpu(m, sketch.feeds).values() for m in (before, ir.to_proto(model)))
    np.testing.assert_array_equal(found, expected)
