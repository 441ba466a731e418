"""Ranges that stop where the functions behind a tensor are flat."""

import math
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from small_models import bundle_of, legality

from pocketport.calibration.capture import calibrate
from pocketport.compress.builder import GraphBuilder
from pocketport.compress.graph import save_graph
from pocketport.compress.pivot.apply import apply_plan
from pocketport.compress.pivot.ranges import FLAT_BEYOND, GIVES, possible_range, useful_range
from pocketport.compress.planning.plan import make_plan
from pocketport.compress.recipe import Recipe


def functions(*ops: str, output: bool = False, **attributes: object) -> ir.Model:
    """x + x, read by each of `ops`; their sum is the output, and the sum x + x too where wanted."""
    g = GraphBuilder("main")
    x = g.input("x", (1, 4, 8))
    y = g.node("Add", [x, x], "y")
    made = [g.node(op, [y], f"{i}.{op}", **attributes) for i, op in enumerate(ops)]
    g.output(made[0] if len(made) == 1 else g.node("Add", made, "sum"))
    if output:
        g.output(y)
    return g.finish()


def y_of(graph: ir.Model) -> ir.Value:
    return next(iter(graph.graph)).outputs[0]


@pytest.mark.parametrize("op", [*FLAT_BEYOND, "HardSigmoid"])
def test_functions_are_flat_there_within_a_step_of_16_bits(op: str, tmp_path: Path) -> None:
    attributes = {"alpha": 0.25, "beta": 0.6} if op == "HardSigmoid" else {}
    graph = functions(op, **attributes)
    low, high = useful_range(y_of(graph))
    assert low > -math.inf
    save_graph(graph, tmp_path / "graph.onnx")
    session = ort.InferenceSession(tmp_path / "graph.onnx", providers=["CPUExecutionProvider"])
    y = np.linspace(-60, 60, 32, dtype=np.float32).reshape(1, 4, 8)
    found, wanted = (
        session.run(None, {"x": v / 2})[0] for v in (np.clip(y, low, min(high, 1e9)).astype(np.float32), y)
    )
    assert np.abs(found - wanted).max() <= np.ptp(wanted) / 65535 * 1.3


def test_every_reader_must_be_flat() -> None:
    assert useful_range(y_of(functions("Relu", "HardSwish"))) == (-3.0, math.inf)
    assert useful_range(y_of(functions("HardSwish", "Exp"))) == (-math.inf, math.inf)
    assert useful_range(y_of(functions("HardSwish", output=True))) == (-math.inf, math.inf)
    assert useful_range(None) == (-math.inf, math.inf)


def test_encodings_stop_there() -> None:
    bundle = bundle_of(main=functions("HardSwish"))
    x = np.linspace(-10, 4, 32, dtype=np.float32).reshape(1, 4, 8)
    plan = make_plan(bundle, Recipe(name="t"), "x/y", legality(defaults={"main": "w8a8"}))
    _, table = apply_plan(bundle, plan, calibrate({"main": bundle["main"].graph}, [("main", {"x": x})]))
    encoding = table["main/y"]
    low, high = (float((b - encoding.zero_point) * encoding.scale) for b in encoding.bounds)
    assert low == pytest.approx(-3, abs=0.05) and high == pytest.approx(8, abs=0.05)
    assert float((0 - table["main/x"].zero_point) * table["main/x"].scale) == pytest.approx(-10, abs=0.1)


def test_16_bits_reach_beyond_what_was_seen() -> None:
    """The largest of eight samples is not the largest there will be: uint16 has half a bit for the next one."""
    bundle = bundle_of(main=functions("Neg"))
    seen = np.linspace(-2, 4, 32, dtype=np.float32).reshape(1, 4, 8)

    def reach(scheme: str, observer: str = "min_max") -> tuple[float, float]:
        recipe = Recipe.model_validate({"name": "t", "rules": [{"observer": observer}]})
        plan = make_plan(bundle, recipe, "x/y", legality(defaults={"main": scheme}))
        _, table = apply_plan(bundle, plan, calibrate({"main": bundle["main"].graph}, [("main", {"x": seen})]))
        encoding = table["main/x"]
        low, high = (float((b - encoding.zero_point) * encoding.scale) for b in encoding.bounds)
        return low, high

    assert reach("w8a16") == pytest.approx((-3, 6), abs=0.01)
    assert reach("w8a8") == pytest.approx((-2, 4), abs=0.05)
    assert reach("w8a16", "percentile") == pytest.approx((-2, 4), abs=0.05), "who chooses an observer gets its range"


@pytest.mark.parametrize("op", sorted(GIVES))
def test_functions_give_no_more(op: str, tmp_path: Path) -> None:
    graph = functions(op)
    low, high = possible_range(next(n for n in graph.graph if n.op_type == op).outputs[0])
    save_graph(graph, tmp_path / "graph.onnx")
    session = ort.InferenceSession(tmp_path / "graph.onnx", providers=["CPUExecutionProvider"])
    for scale in (0.1, 10, 1000):
        x = scale * np.random.default_rng(0).standard_normal((1, 4, 8)).astype(np.float32)
        (found,) = session.run(None, {"x": x})
        assert low <= found.min() and found.max() <= high


def clipped() -> ir.Model:
    """x clipped to 0 … 6 and turned, joined with its sigmoid, and squared."""
    g = GraphBuilder("main")
    x = g.input("x", (1, 4, 8))
    ends = [g.weight(name, np.array(end, np.float32)) for name, end in (("low", 0.0), ("high", 6.0))]
    turned = g.transpose(g.node("Clip", [x, *ends], "short"), (0, 2, 1), "turned")
    joined = g.node("Concat", [turned, g.transpose(g.node("Sigmoid", [x], "s"), (0, 2, 1), "t")], "joined", axis=2)
    g.output(g.node("Mul", [joined, joined], "square"))
    return g.finish()


def test_bounds_go_through_what_moves_values() -> None:
    values = {str(n.name): n.outputs[0] for n in clipped().graph}
    assert possible_range(values["short"]) == possible_range(values["turned"]) == (0.0, 6.0)
    assert possible_range(values["joined"]) == (0.0, 6.0) and possible_range(values["t"]) == (0.0, 1.0)
    assert possible_range(values["square"]) == possible_range(None) == (-math.inf, math.inf)


def test_room_to_spare_ends_at_a_clip() -> None:
    """A saturated ReLU6 in 16 bits reaches 6 and not 9, so that compilers fold the Clip into its convolution."""
    bundle = bundle_of(main=clipped())
    plan = make_plan(bundle, Recipe(name="t"), "x/y", legality(defaults={"main": "w8a16"}))
    x = np.linspace(-3, 40, 32, dtype=np.float32).reshape(1, 4, 8)
    _, table = apply_plan(bundle, plan, calibrate({"main": bundle["main"].graph}, [("main", {"x": x})]))

    def high(name: str) -> float:
        encoding = table[f"main/{name}"]
        return float(encoding.scale * (encoding.bounds[1] - encoding.zero_point))

    assert high("short") == pytest.approx(6, rel=1e-3) and high("x") == pytest.approx(60, rel=1e-3)


def test_room_to_spare_ends_at_a_clip_whose_pixels_are_shuffled() -> None:
    g = GraphBuilder("main")
    ends = [g.weight(name, np.array(end, np.float32)) for name, end in (("low", 0.0), ("high", 6.0))]
    short = g.node("Clip", [g.input("x", (1, 4, 2, 2)), *ends], "short")
    g.output(g.node("Neg", [g.node("DepthToSpace", [short], "shuffled", blocksize=2)], "y"))
    values = {str(n.name): n.outputs[0] for n in g.finish().graph}
    assert possible_range(values["shuffled"]) == (0.0, 6.0)
