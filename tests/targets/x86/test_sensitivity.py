"""What last bits do to a graph: next to nothing behind one layer, much behind many with roundings between."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from pocketport.calibration.metrics import sqnr_db
from pocketport.compress.graph import load_graph, save_graph
from pocketport.targets.x86.engines import REFERENCE, open_engine
from pocketport.targets.x86.lower import lower_graph
from pocketport.targets.x86.sensitivity import shaken_outputs
from pocketport.targets.x86.settings import ONNX

WIDTH, ROWS = 64, 512


def chain(layers: int, *, rounded: bool) -> onnx.ModelProto:
    """x → layers with 8-bit weights, their inputs rounded to 8 bits or left float → y."""
    rng = np.random.default_rng(0)
    nodes, constants, x = [], {}, "x"
    for i in range(layers):
        constants[f"w{i}"] = rng.integers(-127, 128, (WIDTH, WIDTH)).astype(np.int8)
        constants[f"s{i}"] = np.full(WIDTH, 1 / 73 / np.sqrt(WIDTH), np.float32)
        constants[f"z{i}"] = np.zeros(WIDTH, np.int8)
        constants[f"step{i}"], constants[f"zero{i}"] = np.array(8 / 255, np.float32), np.array(128, np.uint8)
        if rounded:
            nodes.append(helper.make_node("QuantizeLinear", [x, f"step{i}", f"zero{i}"], [f"q{i}"]))
            nodes.append(helper.make_node("DequantizeLinear", [f"q{i}", f"step{i}", f"zero{i}"], [f"x{i}"]))
            x = f"x{i}"
        nodes.append(helper.make_node("DequantizeLinear", [f"w{i}", f"s{i}", f"z{i}"], [f"d{i}"], f"w{i}.dq", axis=0))
        x_next = "y" if i == layers - 1 else f"h{i}"
        nodes.append(helper.make_node("Gemm", [x, f"d{i}"], [x_next], transB=1))
        x = x_next
    shape = (ROWS, WIDTH)
    graph = helper.make_graph(
        nodes, "chain", [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


@pytest.mark.parametrize(
    ("layers", "rounded", "least", "most"), [(1, False, 110, 125), (12, False, 100, 120), (24, True, 20, 90)]
)
def test_noise_of_the_last_bits(tmp_path: Path, layers: int, rounded: bool, least: float, most: float) -> None:
    pivot = tmp_path / "pivot.onnx"
    onnx.save(chain(layers, rounded=rounded), pivot)
    before = pivot.read_bytes()
    feeds = {"x": np.random.default_rng(1).standard_normal((ROWS, WIDTH)).astype(np.float32)}
    expected = open_engine(ONNX, pivot, REFERENCE).run(feeds)["y"]
    shaken = sqnr_db(expected, shaken_outputs(pivot, feeds)["y"])
    assert least < shaken < most
    assert pivot.read_bytes() == before
    lowered = load_graph(pivot)
    lower_graph(lowered, saturating=True)
    save_graph(lowered, tmp_path / "lowered.onnx")
    assert sqnr_db(expected, open_engine(ONNX, tmp_path / "lowered.onnx").run(feeds)["y"]) > shaken - 6
