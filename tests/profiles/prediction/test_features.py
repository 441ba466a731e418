"""Features of graphs against counts by hand, and against what torch itself runs."""

import importlib
import json
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from pocketport.compress.ingest import ingest
from pocketport.errors import InputError
from pocketport.profiles.prediction.extraction import graph_features
from pocketport.profiles.prediction.features import GraphFeatures, Kind, OpFeatures

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"


def model(nodes: list, shapes: dict[str, tuple[int, ...]], weights: dict[str, np.ndarray], output: str) -> ir.Model:
    inputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in shapes.items()]
    out = helper.make_tensor_value_info(output, TensorProto.FLOAT, None)
    tensors = [numpy_helper.from_array(w, n) for n, w in weights.items()]
    made = helper.make_graph(nodes, "g", inputs, [out], tensors)
    return ir.from_proto(helper.make_model(made, opset_imports=[helper.make_opsetid("", 21)]))


def test_convolutions_are_told_apart() -> None:
    weights = {
        "full": np.zeros((16, 8, 3, 3), np.float32), "point": np.zeros((16, 16, 1, 1), np.float32),
        "depth": np.zeros((16, 1, 3, 3), np.float32), "group": np.zeros((16, 4, 3, 3), np.float32),
    }  # fmt: skip
    nodes = [
        helper.make_node("Conv", ["x", "full"], ["a"]), helper.make_node("Relu", ["a"], ["b"]), helper.make_node("Conv", ["b", "point"], ["c"]),
        helper.make_node("Conv", ["c", "depth"], ["d"], group=16), helper.make_node("Conv", ["d", "group"], ["y"], group=4),
    ]  # fmt: skip
    found = graph_features(model(nodes, {"x": (1, 8, 12, 12)}, weights, "y"))
    assert [op.kind for op in found.ops] == [Kind.CONV, Kind.POINTWISE, Kind.DEPTHWISE, Kind.GROUPED]
    assert [op.macs for op in found.ops] == [16 * 100 * 72, 16 * 100 * 16, 16 * 64 * 9, 16 * 36 * 36]
    assert [op.window for op in found.ops] == [9, 1, 9, 9]
    assert found.io_elements == 8 * 144 + 16 * 36
    assert found.weights == sum(w.size for w in weights.values())


def test_a_product_with_a_constant_is_a_linear_layer() -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["a"]), helper.make_node("MatMul", ["a", "x"], ["y"])]
    found = graph_features(model(nodes, {"x": (8, 8)}, {"w": np.zeros((8, 8), np.float32)}, "y"))
    assert [op.kind for op in found.ops] == [Kind.LINEAR, Kind.MATMUL]
    assert [op.weights for op in found.ops] == [64, 0]


def test_a_picture_whose_channels_change_places_is_not_moved_but_turned_keys_are() -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"]), helper.make_node("Transpose", ["a"], ["b"], perm=[0, 2, 3, 1]),
        helper.make_node("Gelu", ["b"], ["c"]), helper.make_node("Transpose", ["c"], ["d"], perm=[0, 3, 1, 2]),
        helper.make_node("Reshape", ["d", "heads"], ["e"]), helper.make_node("Transpose", ["e"], ["y"], perm=[0, 2, 3, 1]),
    ]  # fmt: skip
    weights = {"w": np.zeros((16, 8, 1, 1), np.float32), "heads": np.array([1, 16, 4, 36])}
    found = graph_features(model(nodes, {"x": (1, 8, 12, 12)}, weights, "y"))
    assert [op.op for op in found.ops if op.kind != Kind.ACTIVATION] == ["Conv", "Transpose"]
    assert found.ops[-1].inputs == ((1, 16, 4, 36),)


@pytest.mark.parametrize(
    ("kernel", "strides", "output", "kind"),
    [
        ((3, 3), (1, 1), (8, 8), Kind.POOL), ((3, 3), (2, 2), (8, 8), Kind.POOL), ((5, 5), (3, 3), (8, 8), Kind.POOL), ((4, 4), (4, 4), (8, 8), Kind.POOL),
        ((8, 8), (1, 1), (1, 1), Kind.POOL), ((2, 2), (1, 1), (8, 8), Kind.PLAIN_POOL), ((5, 5), (4, 4), (8, 8), Kind.PLAIN_POOL),
        ((17, 17), (8, 8), (2, 4), Kind.PLAIN_POOL), ((1, 3), (1, 1), (8, 8), Kind.PLAIN_POOL), ((8, 8), (1, 1), (1, 9), Kind.PLAIN_POOL),
    ],
)  # fmt: skip
def test_means_over_overlapping_windows(
    kernel: tuple[int, int],
    strides: tuple[int, int],
    output: tuple[int, int],
    kind: Kind,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows, columns = (s * (n - 1) + k for k, s, n in zip(kernel, strides, output, strict=True))
    node = helper.make_node("AveragePool", ["x"], ["y"], kernel_shape=kernel, strides=strides)
    graph = model([node], {"x": (1, 8, rows, columns)}, {}, "y")
    assert [op.kind for op in graph_features(graph).ops] == [kind]
    assert [op.kind for op in graph_features(graph, plain_pools=False).ops] == [Kind.POOL]
    pool = torch.nn.AvgPool2d(kernel, strides)
    (trace,) = benchmarks(monkeypatch, "latency_trace")
    assert [op.kind for op in trace.traced(pool, (torch.zeros(1, 8, rows, columns),)).ops] == [kind]


def test_a_table_costs_the_rows_looked_up() -> None:
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, (5,))
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, (5, 16))
    table = numpy_helper.from_array(np.zeros((1000, 16), np.float32), "table")
    made = helper.make_graph([helper.make_node("Gather", ["table", "ids"], ["y"])], "g", [ids], [out], [table])
    found = graph_features(ir.from_proto(helper.make_model(made, opset_imports=[helper.make_opsetid("", 21)])))
    assert [(op.kind, op.weights) for op in found.ops] == [(Kind.GATHER, 80)]


class Small(torch.nn.Module):
    """A convolution, an attention without projections and a gated MLP: what most models are made of."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 32, 4, 4)
        self.norm, self.up, self.down = torch.nn.LayerNorm(32), torch.nn.Linear(32, 64), torch.nn.Linear(64, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.conv(x)).flatten(2).transpose(1, 2)
        y = self.norm(x)
        x = x + torch.softmax(torch.bmm(y, y.transpose(1, 2)), -1) @ y
        return self.down(torch.nn.functional.gelu(self.up(x)))


def test_a_run_on_the_meta_device_sees_what_an_export_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The committed features come from runs, a user's from ONNX: they must count the same work."""
    (trace,) = benchmarks(monkeypatch, "latency_trace")
    x = torch.zeros(1, 3, 32, 32)
    torch.onnx.export(Small().eval(), (x,), str(tmp_path / "m.onnx"), dynamo=False, opset_version=17)
    exported = graph_features(next(iter(ingest(tmp_path / "m.onnx"))).graph)
    with torch.device("meta"):
        ran = trace.traced(Small().eval(), (x,))
    assert ran.macs == exported.macs
    assert ran.io_elements == exported.io_elements
    kinds = [sorted(op.kind for op in f.ops) for f in (ran, exported)]
    assert kinds[0] == kinds[1]
    assert ran.weights == pytest.approx(exported.weights, rel=0.05)  # biases of linear layers


class BatchBehind(torch.nn.Module):
    """An MLP on [positions, batch, channels], as OpenAI's CLIP has them."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = torch.nn.LayerNorm(32), torch.nn.Linear(32, 64), torch.nn.Linear(64, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.permute(1, 0, 2)
        y = torch.nn.functional.gelu(self.up(self.norm(x)))
        return (x + self.down(y)).permute(1, 0, 2)


def test_a_batch_behind_positions_is_seen_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chips pad it, and it is gone where rows are kept as matrices, which is what Pocketport compiles."""
    (trace,) = benchmarks(monkeypatch, "latency_trace")
    x = torch.zeros(5, 12, 32)
    torch.onnx.export(BatchBehind().eval(), (x,), str(tmp_path / "m.onnx"), dynamo=False, opset_version=17)
    kept, left = (graph_features(next(iter(ingest(tmp_path / "m.onnx", keep_rows=k))).graph) for k in (True, False))
    with torch.device("meta"):
        ran = trace.traced(BatchBehind().eval(), (x,))

    def outputs(features: GraphFeatures) -> list[tuple[str, tuple[int, ...]]]:
        return sorted((op.op, op.output) for op in features.ops if op.kind not in (Kind.MOVE, Kind.LINEAR))

    assert outputs(left) == outputs(ran) != outputs(kept)
    assert ("LayerNormalization", (12, 5, 32)) in outputs(left) and ("LayerNormalization", (60, 32)) in outputs(kept)


@pytest.mark.parametrize(
    "module", ["faces", "gaze", "keypoints", "mediapipe", "realtime", "yolov5face", "yolov6", "yolov9"]
)
def test_committed_features_are_those_of_the_constructions(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of modules that no version of a package changes."""
    known, trace = benchmarks(monkeypatch, "latency_data", "latency_trace")
    features = known.load_features()
    for name, construction in constructions(module).items():
        with torch.device("meta"):
            assert trace.traced(construction.build().eval(), construction.inputs) == features[name], name


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize(
    ("module", "name", "precision"),
    [
        ("mediapipe", "mediapipe_hand_gesture:hand_landmark_detector", "w8a16"), ("mediapipe", "mediapipe_pose:pose_detector", "float"),
        ("faces", "facemap_3dmm", "w8a8"), ("transformer", "minilm_v2", "w8a8"), ("mediapipe", "mediapipe_face:face_landmark_detector", "w8a8"),
        ("yolov9", "yolov9_det", "w8a8"),
    ],
)  # fmt: skip
def test_committed_estimates_are_of_the_form_that_is_compiled(
    module: str, name: str, precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If this fails, what is compiled has changed: `benchmarks/htp_estimates.py` makes the rows again, `fit_latency.py` fits to them."""
    pytest.importorskip("onnxruntime_qnn")
    (estimates,) = benchmarks(monkeypatch, "htp_estimates")
    monkeypatch.setattr(sys.modules["latency_models"], "CONSTRUCTIONS", constructions(module), raising=False)
    (row,) = [row for row in estimates.rows() if (row["model"], row["precision"]) == (name, precision)]
    found = estimates.estimate(name, precision, tmp_path)
    told = {figure: float(row[figure]) for figure in ("sa8255p_us", "sa8540p_us") if row[figure]}
    assert {figure: found[figure] for figure in told} == pytest.approx(told, rel=0.02)
    assert found["sa8255p_ops_without_cost"] == float(row["sa8255p_ops_without_cost"])


def benchmarks(monkeypatch: pytest.MonkeyPatch, *names: str) -> list[Any]:
    """Modules of the benchmarks, beside which one module of constructions can be imported without the packages that others need."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    for name in [n for n in sys.modules if n.startswith("latency_models")]:
        monkeypatch.delitem(sys.modules, name)
    package = types.ModuleType("latency_models")
    package.__path__ = [str(BENCHMARKS / "latency_models")]
    monkeypatch.setitem(sys.modules, "latency_models", package)
    return [importlib.import_module(name) for name in names]


def constructions(module: str) -> dict[str, Any]:
    found: dict[str, Any] = getattr(importlib.import_module(f"latency_models.{module}"), module.upper())
    return found


shapes = st.lists(st.integers(1, 4096), max_size=5).map(tuple)
ops = st.builds(
    OpFeatures,
    op=st.text(min_size=1, max_size=8), kind=st.sampled_from(list(Kind)), macs=st.integers(0, 2**50), weights=st.integers(0, 2**40),
    inputs=st.lists(shapes, max_size=3).map(tuple), output=shapes, window=st.integers(1, 50), groups=st.integers(1, 50),
)  # fmt: skip


@given(st.lists(ops, max_size=5), st.integers(0, 2**40))
def test_features_survive_json(listed: list[OpFeatures], io_elements: int) -> None:
    features = GraphFeatures(tuple(listed), io_elements)
    back = GraphFeatures.from_json(json.loads(json.dumps(features.to_json())), "x")
    assert back == features
    assert back.digest == features.digest


@pytest.mark.parametrize(
    "document", [{}, {"ops": [], "io_elements": "3"}, {"ops": [["Add"]], "io_elements": 1}, {"ops": [["Add", "magic", 1, 1, [], [], 1, 1]], "io_elements": 1},
                 {"ops": [["Add", "elementwise", -1, 1, [], [], 1, 1]], "io_elements": 1}]
)  # fmt: skip
def test_damaged_features(document: dict) -> None:
    with pytest.raises(InputError, match=r"cache\.json"):
        GraphFeatures.from_json(document, "cache.json")
