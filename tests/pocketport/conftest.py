from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper


def perceptron(path: Path, *, op: str = "Relu") -> Path:
    """x [1, 16] → Gemm → `op` → Gemm → y [1, 4], random weights."""
    rng = np.random.default_rng(0)
    shapes = {"w1": (32, 16), "b1": (32,), "w2": (4, 32), "b2": (4,)}
    weights = {name: (rng.standard_normal(shape) / 4).astype(np.float32) for name, shape in shapes.items()}
    graph = helper.make_graph(
        [
            helper.make_node("Gemm", ["x", "w1", "b1"], ["h"], "first", transB=1),
            helper.make_node(op, ["h"], ["r"], "middle"),
            helper.make_node("Gemm", ["r", "w2", "b2"], ["y"], "second", transB=1),
        ],
        "perceptron",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return perceptron(tmp_path / "perceptron.onnx")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "samples.npz"
    np.savez(path, x=np.random.default_rng(1).standard_normal((24, 1, 16)).astype(np.float32))
    return path


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    cache = tmp_path / "cache"
    monkeypatch.setenv("POCKETPORT_CACHE", str(cache))
    return cache
