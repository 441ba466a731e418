"""What lowering writes: layouts, precision, constants, refusals, bytes."""

from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from pocketport.calibration.encodings import Encoding
from pocketport.compress.schemes import Scheme
from pocketport.errors import InputError, ToolchainError
from pocketport.targets import conformance_graphs as graphs
from pocketport.targets.contract import Target
from pocketport.targets.mediatek import backend
from pocketport.targets.mediatek.emit import Emitter
from pocketport.targets.mediatek.execute import LiteRTExecutor
from pocketport.targets.mediatek.lower import check_graph, lower_file
from pocketport.targets.mediatek.lowering import same_grid
from pocketport.targets.mediatek.model_file import read_operators

pytest.importorskip("ai_edge_litert")

LEGALITY = backend.legality(Target.parse("mediatek/mt6989"))


def model_of(nodes: list[onnx.NodeProto], weights: dict[str, np.ndarray], **inputs: tuple[int, ...]) -> onnx.ModelProto:
    infos = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in inputs.items()]
    initializers = [numpy_helper.from_array(a, n) for n, a in weights.items()]
    graph = helper.make_graph(nodes, "g", infos, [helper.make_empty_tensor_value_info("y")], initializers)
    return onnx.shape_inference.infer_shapes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=11)
    )


def lowered_ops(model: onnx.ModelProto, folder: Path) -> Counter[str]:
    onnx.save(model, folder / "m.onnx")
    lower_file("main", folder / "m.onnx", folder / "m.tflite")
    return Counter(o.code for o in read_operators(folder / "m.tflite"))


def test_a_cnn_is_nhwc_with_one_transpose_and_its_relu_inside(tmp_path: Path) -> None:
    graph = graphs.convolutional()
    ops = lowered_ops(graphs.quantize(graph, Scheme.parse("w8a16"), LEGALITY), tmp_path)
    assert ops["TRANSPOSE"] == 1  # the image; pooling leaves only 1s to move
    assert ops["RELU"] == 0
    assert (ops["QUANTIZE"], ops["DEQUANTIZE"]) == (1, 1)


def test_transposes_cancel(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Transpose", ["x"], ["a"], perm=[0, 2, 1]),
        helper.make_node("Abs", ["a"], ["b"]),
        helper.make_node("Transpose", ["b"], ["y"], perm=[0, 2, 1]),
    ]
    assert lowered_ops(model_of(nodes, {}, x=(2, 3, 4)), tmp_path) == {"ABS": 1}


def test_attention_has_one_transpose_for_each_of_q_k_v_and_the_result(tmp_path: Path) -> None:
    ops = lowered_ops(graphs.quantize(graphs.transformer(), Scheme.parse("w8a16"), LEGALITY), tmp_path)
    assert ops["TRANSPOSE"] == 4
    assert ops["BATCH_MATMUL"] == 2


def test_same_pivot_same_bytes(tmp_path: Path) -> None:
    onnx.save(graphs.quantize(graphs.transformer(), Scheme.parse("w4a16"), LEGALITY), tmp_path / "m.onnx")
    for name in ("a", "b"):
        lower_file("main", tmp_path / "m.onnx", tmp_path / f"{name}.tflite")
    assert (tmp_path / "a.tflite").read_bytes() == (tmp_path / "b.tflite").read_bytes()


def test_four_bit_weights_take_half_the_room(tmp_path: Path) -> None:
    sizes = {}
    for scheme in ("w8a16", "w4a16"):
        lowered_ops(graphs.quantize(graphs.transformer(), Scheme.parse(scheme), LEGALITY), tmp_path)
        sizes[scheme] = (tmp_path / "m.tflite").stat().st_size
    weights = 4 * 64 * 64 + 2 * 64 * 128
    assert sizes["w8a16"] - sizes["w4a16"] == pytest.approx(weights / 2, abs=64)


@given(st.lists(st.integers(-8, 7), min_size=1, max_size=9))
def test_int4_constants_survive_the_file(values: list[int]) -> None:
    from ai_edge_litert import schema_py_generated as schema

    emitter = Emitter()
    encoding = Encoding("int4", np.ones((), np.float32), np.zeros((), np.int32))
    stored = emitter.constant(np.array(values, np.int8), dtype="int4", encoding=encoding)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "m.tflite"
        emitter.save(path, {}, {"y": stored}, "test")
        model = schema.Model.GetRootAs(path.read_bytes(), 0)
    buffer = model.Buffers(model.Subgraphs(0).Tensors(0).Buffer())
    raw = buffer.DataAsNumpy()
    nibbles = np.stack([raw & 0xF, raw >> 4], axis=1).reshape(-1)[: len(values)].astype(np.int8)
    assert np.where(nibbles > 7, nibbles - 16, nibbles).tolist() == values


def test_tensor_data_is_aligned(tmp_path: Path) -> None:
    from ai_edge_litert import schema_py_generated as schema

    lowered_ops(graphs.quantize(graphs.transformer(), Scheme.parse("w8a16"), LEGALITY), tmp_path)
    data = (tmp_path / "m.tflite").read_bytes()
    model = schema.Model.GetRootAs(data, 0)
    whole = np.frombuffer(data, np.uint8).ctypes.data
    for i in range(model.BuffersLength()):
        if not model.Buffers(i).DataIsNone():
            assert (model.Buffers(i).DataAsNumpy().ctypes.data - whole) % 16 == 0


def test_biases_are_int64_at_the_product_of_the_scales(tmp_path: Path) -> None:
    from ai_edge_litert import schema_py_generated as schema

    pivot = graphs.quantize(graphs.convolutional(), Scheme.parse("w8a16"), LEGALITY)
    lowered_ops(pivot, tmp_path)
    model = schema.Model.GetRootAs((tmp_path / "m.tflite").read_bytes(), 0)
    tensors = {
        model.Subgraphs(0).Tensors(i).Name().decode(): model.Subgraphs(0).Tensors(i)
        for i in range(model.Subgraphs(0).TensorsLength())
    }
    constants = {i.name: numpy_helper.to_array(i) for i in pivot.graph.initializer}
    bias = tensors["head.b.dq"]
    assert bias.Type() == schema.TensorType.INT64
    np.testing.assert_allclose(bias.Quantization().ScaleAsNumpy(), constants["head.b.scale"], rtol=1e-6)
    stored = model.Buffers(bias.Buffer()).DataAsNumpy().view(np.int64)
    np.testing.assert_array_equal(stored, constants["head.b.int"])


@pytest.mark.parametrize(
    ("first", "second", "dtype", "same"),
    [
        (1 / 32768, 1 / 32767, "int16", True),
        (1 / 32768, 1.01 / 32768, "int16", False),
        (1 / 256, 1 / 255, "int8", False),
    ],
)
def test_grids(first: float, second: float, dtype: str, same: bool) -> None:
    a, b = (Encoding(dtype, np.array(s, np.float32), np.zeros((), np.int32)) for s in (first, second))
    assert same_grid(a, b) is same


def test_every_refused_node_is_named_once() -> None:
    nodes = [
        helper.make_node("Erf", ["x"], ["a"], name="first"),
        helper.make_node("ConvTranspose", ["a", "w"], ["b"], name="second", group=2),
        helper.make_node("Relu", ["b"], ["c"], name="fine"),
        helper.make_node("MaxPool", ["c"], ["y"], name="third", kernel_shape=[2, 2], ceil_mode=1),
    ]
    model = model_of(nodes, {"w": np.ones((4, 2, 1, 1), np.float32)}, x=(1, 4, 4, 4))
    found = check_graph("vision", ir.from_proto(model))
    assert [d.where for d in found] == [
        "vision, node first, op Erf", "vision, node second, op ConvTranspose", "vision, node third, op MaxPool"
    ]  # fmt: skip
    assert all(d.why and d.fix and d.code == "mediatek.unsupported-op" for d in found)


def test_lowering_a_refused_graph_raises_with_every_node(tmp_path: Path) -> None:
    nodes = [helper.make_node("Erf", ["x"], ["a"], name="one"), helper.make_node("Erf", ["a"], ["y"], name="two")]
    with pytest.raises(ToolchainError, match=r"2 nodes.*node one.*node two"):
        lowered_ops(model_of(nodes, {}, x=(3,)), tmp_path)
    assert not (tmp_path / "m.tflite").exists()


def test_blocked_weights_are_refused(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s"], ["wd"], name="blocks", axis=1, block_size=4),
        helper.make_node("Gemm", ["x", "wd"], ["y"], name="linear", transB=1),
    ]
    weights = {"w": np.ones((3, 8), np.int8), "s": np.ones((3, 2), np.float32)}
    with pytest.raises(ToolchainError, match="blocks of 4"):
        lowered_ops(model_of(nodes, weights, x=(2, 8)), tmp_path)


def test_unsigned_activations_are_refused(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], name="quantize"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
    weights = {"s": np.array(0.1, np.float32), "z": np.array(128, np.uint8)}
    with pytest.raises(ToolchainError, match="uint8"):
        lowered_ops(model_of(nodes, weights, x=(4,)), tmp_path)


def test_a_bias_beyond_32_bits_is_refused(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["xd"]),
        helper.make_node("DequantizeLinear", ["w", "ws"], ["wd"], axis=0),
        helper.make_node("Gemm", ["xd", "wd", "b"], ["raw"], name="linear", transB=1),
        helper.make_node("QuantizeLinear", ["raw", "s", "z"], ["yq"]),
        helper.make_node("DequantizeLinear", ["yq", "s", "z"], ["y"]),
    ]
    weights = {
        "s": np.array(1e-4, np.float32), "z": np.array(0, np.int16), "w": np.ones((3, 8), np.int8),
        "ws": np.full(3, 1e-8, np.float32), "b": np.ones(3, np.float32),
    }  # fmt: skip
    with pytest.raises(ToolchainError, match="32 bits"):
        lowered_ops(model_of(nodes, weights, x=(2, 8)), tmp_path)


def test_an_exact_gelu_is_remarked(tmp_path: Path) -> None:
    for approximate, remarks in (("none", 1), ("tanh", 0)):
        onnx.save(
            model_of([helper.make_node("Gelu", ["x"], ["y"], approximate=approximate)], {}, x=(4,)), tmp_path / "m.onnx"
        )
        assert len(lower_file("main", tmp_path / "m.onnx", tmp_path / "m.tflite")) == remarks


def test_executor_says_what_is_wrong_with_its_feeds(tmp_path: Path) -> None:
    lowered_ops(model_of([helper.make_node("Abs", ["x"], ["y"])], {}, x=(2, 3)), tmp_path)
    executor = LiteRTExecutor(tmp_path / "m.tflite")
    with pytest.raises(InputError, match="no value for input 'x'"):
        executor.run({})
    with pytest.raises(InputError, match=r"shape \(6,\)"):
        executor.run({"x": np.zeros(6, np.float32)})
    executor.close()


def test_files_that_are_not_tflite(tmp_path: Path) -> None:
    (tmp_path / "m.tflite").write_bytes(b"not a model at all")
    with pytest.raises(InputError):
        read_operators(tmp_path / "m.tflite")
    with pytest.raises(InputError):
        LiteRTExecutor(tmp_path / "m.tflite")
