"""A session gives the same numbers wherever a graph's weights are, and computes no more than it is asked for."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from pocketport.calibration.sessions import open_session
from pocketport.compress.builder import GraphBuilder
from pocketport.compress.graph import load_graph, save_graph
from pocketport.errors import ToolchainError

X = np.random.default_rng(1).standard_normal((4, 64)).astype(np.float32)


def two_layers() -> ir.Model:
    rng = np.random.default_rng(0)
    g = GraphBuilder("main")
    weights = [g.weight(name, rng.standard_normal((64, 64)).astype(np.float32)) for name in ("first", "second")]
    hidden = g.node("Relu", [g.node("MatMul", [g.input("x", X.shape), weights[0]], "product")], "hidden")
    g.output(g.node("MatMul", [hidden, weights[1]], "last", output="y"))
    return g.finish()


def test_weights_in_memory_in_a_file_and_in_two_folders(tmp_path: Path) -> None:
    graph = two_layers()
    (expected,) = open_session(graph).run(None, {"x": X})
    assert np.allclose(expected, reference(graph), rtol=1e-4, atol=1e-4)
    for folder in ("one", "two"):
        save_graph(graph, tmp_path / folder / "graph.onnx")
    in_a_file, other = (load_graph(tmp_path / folder / "graph.onnx") for folder in ("one", "two"))
    mixed = in_a_file.clone()
    mixed.graph.initializers["first"].const_value = other.graph.initializers["first"].const_value
    for stored in (in_a_file, mixed, tmp_path / "one" / "graph.onnx"):
        session = open_session(stored)
        (found,) = session.run(None, {"x": X})
        assert np.array_equal(found, expected)
    assert isinstance(mixed.graph.initializers["second"].const_value, ir.ExternalTensor)  # the graph is as it was


def reference(graph: ir.Model) -> np.ndarray:
    first, second = (graph.graph.initializers[name].const_value.numpy() for name in ("first", "second"))  # type: ignore[union-attr]
    return np.asarray(np.maximum(X @ first, 0) @ second)


def test_what_no_output_needs_is_left_out(tmp_path: Path) -> None:
    save_graph(two_layers(), tmp_path / "graph.onnx")
    graph = load_graph(tmp_path / "graph.onnx")
    graph.graph.initializers["second"].const_value = ir.ExternalTensor(
        "missing.data", 0, 64 * 64 * 4, ir.DataType.FLOAT, shape=ir.Shape((64, 64)), name="second", base_dir=tmp_path
    )
    with pytest.raises(ToolchainError):
        open_session(graph)
    session = open_session(graph, ["hidden"])
    assert [v.name for v in session.get_outputs()] == ["hidden"]
    assert len(graph.graph) == 3 and [v.name for v in graph.graph.outputs] == ["y"]
