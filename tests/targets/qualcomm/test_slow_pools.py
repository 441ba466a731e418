"""Means over windows that have no integer kernel: found as the compiler finds them, equal as convolutions."""

from pathlib import Path

import onnx
import onnx_ir as ir
import pytest

from pocketport.compress.graph import inferred
from pocketport.profiles.prediction.extraction import mean_kind
from pocketport.profiles.prediction.features import Kind
from pocketport.targets.qualcomm import backend, lower, slow_pools

from .pivots import Sketch, run_on_cpu, sqnr_db
from .test_compile import emulated_db, port, request_for
from .test_slow_forms import features

WINDOWS: dict[str, dict[str, list[int] | int]] = {
    "2 by 1": {"kernel_shape": [2, 2], "strides": [1, 1]},
    "6 by 3": {"kernel_shape": [6, 6], "strides": [3, 3]},
    "9 by 4, padded": {"kernel_shape": [9, 9], "strides": [4, 4], "pads": [4] * 4, "count_include_pad": 1},
    "2 × 3 by 1 × 2": {"kernel_shape": [2, 3], "strides": [1, 2]},
}


@pytest.mark.parametrize("size", [2, 3, 4, 5, 6, 7, 8])
def test_which_means_have_no_kernel_is_what_the_compiler_has_no_cost_for(
    size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime_qnn")
    monkeypatch.setattr(lower, "FASTER", ())
    for stride in sorted({1, 2, 3, size - 1, size, size + 1}):
        sketch = Sketch()
        mean = sketch.op(
            "AveragePool", features(sketch, 32, 30, 30), kernel_shape=[size, size], strides=[stride, stride]
        )
        pivot = sketch.pivot(sketch.op("Conv", mean, sketch.weight(8, 32, 1, 1, scale=0.25)), bits=8)
        request = request_for(tmp_path / str(stride), pivot)
        blind = backend.estimate(request, backend.lower(request))["sa8255p_ops_without_cost"] > 0
        places = ((30 - size) // stride + 1,) * 2
        assert blind == (mean_kind((size, size), (stride, stride), places) is Kind.PLAIN_POOL), (size, stride)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("window", sorted(WINDOWS))
def test_means_without_a_kernel_are_convolutions(window: str, bits: int, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime_qnn")
    sketch = Sketch()
    mean = sketch.op("AveragePool", features(sketch, 32, 18, 18), **WINDOWS[window])
    pivot = sketch.pivot(sketch.op("Conv", mean, sketch.weight(8, 32, 1, 1, scale=0.25)), bits=bits)
    model = inferred(ir.from_proto(pivot))
    slow_pools.convolve_means(model)
    assert not [node for node in model.graph if node.op_type == "AveragePool"]
    (expected,), (found,) = (run_on_cpu(m, sketch.feeds).values() for m in (pivot, ir.to_proto(model)))
    assert sqnr_db(expected, found) > (40 if bits == 8 else 85)
    request = request_for(tmp_path, pivot)
    assert backend.estimate(request, backend.lower(request))["sa8255p_ops_without_cost"] == 0
    assert emulated_db(request, port(request), sketch) > (30 if bits == 8 else 60)


@pytest.mark.parametrize(
    "window",
    [
        {"kernel_shape": [3, 3], "strides": [1, 1]},
        {"kernel_shape": [4, 4], "strides": [4, 4]},
        {"kernel_shape": [18, 18], "strides": [1, 1]},
        {"kernel_shape": [2, 2], "strides": [1, 1], "pads": [1, 1, 0, 0]},  # weights differ at the border
        {"kernel_shape": [4, 4], "strides": [3, 3], "ceil_mode": 1},
    ],
)
def test_means_with_a_kernel_or_unequal_weights_are_left(window: dict[str, list[int] | int], tmp_path: Path) -> None:
    sketch = Sketch()
    pivot = sketch.pivot(sketch.op("AveragePool", features(sketch, 32, 18, 18), **window), bits=8)
    lowered = onnx.load(backend.lower(request_for(tmp_path, pivot)).paths["onnx"])
    assert [n.op_type for n in lowered.graph.node].count("AveragePool") == 1
