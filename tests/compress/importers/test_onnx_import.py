from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest

from pocketport.compress.executors.ort_executor import OrtExecutor
from pocketport.compress.graph import static_shape
from pocketport.compress.importers.onnx_import import SPARE_BYTES
from pocketport.compress.ingest import ingest
from pocketport.compress.parity import check_parity
from pocketport.errors import InputError, UsageError, VerificationError

OCR_MODELS = {
    "ch_PP-OCRv4_det_infer": ((1, 3, 96, 96), {"BatchNormalization", "Clip", "Div", "Identity"}, {"HardSwish": 24, "Conv": 62}),
    "ch_PP-OCRv4_rec_infer": ((1, 3, 48, 160), {"BatchNormalization", "Pow", "Shape", "Cast", "Flatten"}, {"LayerNormalization": 5, "Softmax": 3}),
    "ch_ppocr_mobile_v2.0_cls_infer": ((1, 3, 48, 192), {"BatchNormalization", "Shape", "Cast", "Identity"}, {"HardSwish": 18, "Softmax": 1}),
}  # fmt: skip


def save(path: Path, body: str, inputs: str = "float[N,4] x", opset: int = 13) -> Path:
    text = f'<ir_version: 8, opset_import: ["": {opset}]> graph ({inputs}) => (float y) {{ {body} }}'
    onnx.save(onnx.parser.parse_model(text), path)
    return path


@pytest.mark.parametrize("name", OCR_MODELS)
def test_real_ocr_models_come_through(name: str) -> None:
    rapidocr = pytest.importorskip("rapidocr_onnxruntime")
    path = Path(rapidocr.__file__).parent / "models" / f"{name}.onnx"
    shape, gone, present = OCR_MODELS[name]
    bundle = ingest(path, shapes={"x": shape})
    graph = bundle["main"].graph
    ops = Counter(node.op_type for node in graph.graph)
    assert not gone & set(ops)
    assert {op: ops[op] for op in present} == present
    assert graph.graph.opset_imports[""] >= 21
    assert all(static_shape(output) for node in graph.graph for output in node.outputs)
    # The untouched file, in onnxruntime, is the independent reference.
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    (expected,), (found,) = (list(OrtExecutor(g).run({"x": x}).values()) for g in (path, graph))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    report = check_parity(bundle, path)
    assert all(figure.sqnr_db > 90 for figure in report.figures)


def test_a_file_of_weights_is_not_counted_once_a_tensor(tmp_path: Path) -> None:
    """As torch exports models: each tensor maps the file, together far more than what simplifying may allocate."""
    layers, width = 48, 512
    rng = np.random.default_rng(0)
    weights, nodes, value = [], [], "x"
    for layer in range(layers):
        arrays = {
            f"w{layer}": 0.03 * rng.standard_normal((width, width)).astype(np.float32),
            f"b{layer}": rng.standard_normal(width).astype(np.float32),
        }
        weights += [onnx.numpy_helper.from_array(array, name) for name, array in arrays.items()]
        nodes += [
            onnx.helper.make_node("MatMul", [value, f"w{layer}"], [f"p{layer}"]),
            onnx.helper.make_node("Add", [f"p{layer}", f"b{layer}"], [f"y{layer}"]),
        ]
        value = f"y{layer}"
    ends = [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [2, width]) for n in ("x", value)]
    graph = onnx.helper.make_graph(nodes, "main", ends[:1], ends[1:], weights)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9)
    path = tmp_path / "m.onnx"
    onnx.save_model(model, path, save_as_external_data=True, location="m.data", size_threshold=0)
    size = (tmp_path / "m.data").stat().st_size
    assert 2 * layers * size > SPARE_BYTES + 2 * size
    bundle = ingest(path)
    x = rng.standard_normal((2, width)).astype(np.float32)
    (expected,), (found,) = (list(OrtExecutor(g).run({"x": x}).values()) for g in (path, bundle["main"].graph))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_open_shapes_must_be_said(tmp_path: Path) -> None:
    path = save(tmp_path / "m.onnx", "y = Relu(x)")
    with pytest.raises(UsageError, match=r"input x.*--shape x=1,4"):
        ingest(path)
    bundle = ingest(path, shapes={"x": [3, 4]})
    assert bundle.config["shapes"] == {"x": [3, 4]}
    assert static_shape(bundle["main"].graph.graph.outputs[0]) == (3, 4)


@pytest.mark.parametrize("shapes", [{"z": [3, 4]}, {"x": [3, 5]}, {"x": [3]}, {"x": [0, 4]}])
def test_shapes_that_contradict_the_file(tmp_path: Path, shapes: dict[str, list[int]]) -> None:
    with pytest.raises(UsageError):
        ingest(save(tmp_path / "m.onnx", "y = Relu(x)"), shapes=shapes)


def test_an_unknown_op_is_named(tmp_path: Path) -> None:
    path = save(tmp_path / "m.onnx", "y = NoSuchOp(x)", "float[1,4] x")
    with pytest.raises(InputError, match="NoSuchOp"):
        ingest(path)


def test_a_shape_that_depends_on_values_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "m.onnx", "hits = NonZero(x) y = Cast<to = 1>(hits)", "float[1,4] x")
    with pytest.raises(InputError, match="NonZero"):
        ingest(path)


def test_a_constant_model_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "m.onnx", "c = Constant<value_floats = [1.0]>() y = Relu(c)", "float[1,4] x")
    with pytest.raises(InputError):
        ingest(path)


def test_index_inputs_become_int32(tmp_path: Path) -> None:
    body = """table = Constant<value_floats = [1.0, 2.0, 4.0]>()
              two = Constant<value_int = 2>()
              picked = Gather(table, ids)
              mirrored = Sub(two, ids)
              other = Gather(table, mirrored)
              y = Add(picked, other)"""
    path = save(tmp_path / "m.onnx", body, "int64[3] ids")
    bundle = ingest(path)
    check_parity(bundle, path)
    result = OrtExecutor(bundle["main"].graph).run({"ids": np.array([0, 1, 2], np.int32)})
    np.testing.assert_array_equal(result["y"], [5, 4, 5])


@pytest.mark.parametrize(
    ("body", "inputs", "message"),
    [
        ("y = Relu(x)", "float16[1,4] x", "FLOAT16"),
        (
            "s = Constant<value_float = 0.1>() q = QuantizeLinear(x, s) y = DequantizeLinear(q, s)",
            "float[1,4] x",
            "quantized already",
        ),
    ],
)
def test_only_float32_models_are_taken(tmp_path: Path, body: str, inputs: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        ingest(save(tmp_path / "m.onnx", body, inputs))


def test_damaged_files(tmp_path: Path) -> None:
    path = save(tmp_path / "m.onnx", "y = Relu(x)", "float[1,4] x")
    whole = path.read_bytes()
    for content in (b"", whole[: len(whole) // 2], b"not a protobuf at all"):
        path.write_bytes(content)
        with pytest.raises(InputError):
            ingest(path)
    with pytest.raises(UsageError, match="no such model"):
        ingest(tmp_path / "absent.onnx")


def test_parity_catches_a_changed_weight(tmp_path: Path) -> None:
    body = "w = Constant<value_floats = [1.0, 2.0, 3.0, 4.0]>() y = Mul(x, w)"
    path = save(tmp_path / "m.onnx", body, "float[1,4] x")
    bundle = ingest(path)
    check_parity(bundle, path)
    save(path, body.replace("4.0", "4.1"), "float[1,4] x")
    with pytest.raises(VerificationError, match="differs from the original"):
        check_parity(bundle, path)


def test_parity_looks_before_a_final_sigmoid(tmp_path: Path) -> None:
    """A linear layer works on matrices: the sigmoid that follows it does too, and a Reshape is what comes last."""
    body = """w = Constant<value = float[2,2] {1.0, 2.0, 3.0, 4.0}>() b = Constant<value_floats = [1.0, 2.0]>()
        p = MatMul(x, w) s = Add(p, b) y = Sigmoid(s)"""
    path = save(tmp_path / "m.onnx", body, "float[1,3,2] x")
    bundle = ingest(path)
    assert bundle["main"].graph.graph.outputs[0].producer().op_type == "Reshape"
    assert all(figure.sqnr_db > 90 for figure in check_parity(bundle, path).figures)
    save(path, body.replace("4.0", "4.1"), "float[1,3,2] x")
    with pytest.raises(VerificationError, match="differs from the original"):
        check_parity(bundle, path)
