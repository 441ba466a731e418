"""Lowering, against onnxruntime on the same pivot: nothing here needs the vendor's compiler."""

import json
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocketport.errors import InputError
from pocketport.targets.contract import CompileRequest, Lowered, Target
from pocketport.targets.qualcomm.lower import lower
from pocketport.targets.qualcomm.qdq import Port
from pocketport.targets.qualcomm.rewrites import has_lpbq_scales

from .blocks import decoder, normal, table, vision
from .pivots import Array, Sketch, run_on_cpu, sqnr_db


def lowered(tmp_path: Path, pivot: onnx.ModelProto, soc: str = "sm8650") -> Lowered:
    (tmp_path / "work").mkdir(exist_ok=True)
    onnx.save(pivot, tmp_path / "pivot.onnx")
    target = Target("qualcomm", soc)
    return lower(CompileRequest("main", tmp_path / "pivot.onnx", target, tmp_path / "work", tmp_path / "out"))


def run_lowered(result: Lowered, feeds: dict[str, Array]) -> dict[str, Array]:
    ports = {name: Port(**port) for name, port in json.loads(result.paths["io"].read_text()).items()}
    inside = {k: ports[k].encoding.quantize(v).astype(ports[k].dtype) if k in ports else v for k, v in feeds.items()}
    outputs = run_on_cpu(result.paths["onnx"], inside)
    return {k: ports[k].encoding.dequantize(v) if k in ports else v for k, v in outputs.items()}


def op_types(result: Lowered) -> list[str]:
    return [node.op_type for node in onnx.load(result.paths["onnx"]).graph.node]


@pytest.mark.parametrize(
    ("build", "soc", "least"),
    [
        (vision, "sm8650", 70),
        (vision, "sm8450", 45),
        (decoder, "sm8650", 70),
        (decoder, "sm8450", 45),
        (table, "sm8650", 150),
    ],
)
def test_the_numbers_stay(build, soc: str, least: float, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    sketch = Sketch()
    pivot = sketch.pivot(*build(sketch))
    result = run_lowered(lowered(tmp_path, pivot, soc), sketch.feeds)
    expected = run_on_cpu(pivot, sketch.feeds)
    assert set(result) == set(expected)
    for name, values in expected.items():
        assert result[name].shape == values.shape
        assert sqnr_db(values, result[name]) > least


def test_the_boundary_is_integer(tmp_path: Path) -> None:
    sketch = Sketch()
    result = lowered(tmp_path, sketch.pivot(*decoder(sketch)))
    graph = onnx.load(result.paths["onnx"]).graph
    kinds = {v.type.tensor_type.elem_type for v in (*graph.input, *graph.output)}
    assert kinds == {onnx.TensorProto.UINT16}
    assert {v.name for v in graph.input} == set(sketch.feeds)


def test_outputs_in_image_layout_stay_float(tmp_path: Path) -> None:
    sketch = Sketch()
    image = sketch.input("image", normal(sketch, 1, 3, 8, 8))
    pivot = sketch.pivot(sketch.op("Relu", sketch.op("Conv", image, sketch.weight(4, 3, 1, 1))))
    result = lowered(tmp_path, pivot)
    graph = onnx.load(result.paths["onnx"]).graph
    assert graph.output[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    assert set(json.loads(result.paths["io"].read_text())) == {"image"}


def test_the_second_operand_by_architecture(tmp_path: Path) -> None:
    sketch = Sketch()
    pivot = sketch.pivot(*vision(sketch))
    for soc, dtype, notes in (("sm8650", "int16", 0), ("sm8350", "uint8", 1)):
        result = lowered(tmp_path, pivot, soc)
        model = ir.load(result.paths["onnx"])
        operands = [n.inputs[1].producer() for n in model.graph if n.op_type == "MatMul"]
        assert {str(node.inputs[2].const_value.dtype).lower() for node in operands} == {dtype}
        assert [d.code for d in result.diagnostics] == ["qualcomm.matmul-8-bit"] * notes


@pytest.mark.parametrize(("rows", "soc", "padded"), [(1, "sm8450", True), (8, "sm8450", False), (1, "sm8650", False)])
def test_rows_are_padded_on_v69_only(rows: int, soc: str, padded: bool, tmp_path: Path) -> None:
    sketch = Sketch()
    left, right = sketch.input("a", normal(sketch, 2, rows, 16)), sketch.input("b", normal(sketch, 2, 16, 9))
    pivot = sketch.pivot(sketch.op("MatMul", left, right))
    result = lowered(tmp_path, pivot, soc)
    assert ("Slice" in op_types(result)) is padded
    expected = run_on_cpu(pivot, sketch.feeds)
    for name, values in run_lowered(result, sketch.feeds).items():
        assert sqnr_db(expected[name], values) > 35


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("transposed", [0, 1])
def test_lpbq_blocks_become_matmul_and_turn_the_option_on(tmp_path: Path, biased: bool, transposed: int) -> None:
    sketch = Sketch()
    x = sketch.input("x", normal(sketch, 3, 64))
    weight = sketch.weight(*((32, 64) if transposed else (64, 32)), bits=4)
    bias = [sketch.constant(10 * normal(sketch, 32))] if biased else []
    pivot = sketch.pivot(sketch.op("Gemm", x, weight, *bias, transB=transposed), block=16)
    result = lowered(tmp_path, pivot)
    assert "MatMul" in op_types(result) and "Gemm" not in op_types(result)
    assert op_types(result).count("Add") == len(bias)
    assert json.loads(result.paths["options"].read_text()) == {"enable_block_quant_weight_optimization": "1"}
    name, expected = next(iter(run_on_cpu(pivot, sketch.feeds).items()))
    step = np.ptp(expected) / 65000
    np.testing.assert_allclose(
        run_lowered(result, sketch.feeds)[name], expected, rtol=0, atol=step * (3 if bias else 1)
    )


def test_an_8_bit_sum_has_no_room_for_its_product(tmp_path: Path) -> None:
    """One layer as a whole, on slower kernels, rather than rounded once more to 8 bits."""
    sketch = Sketch()
    x = sketch.input("x", normal(sketch, 3, 64))
    layer = sketch.op("Gemm", x, sketch.weight(32, 64, bits=4), sketch.constant(normal(sketch, 32)), transB=1)
    assert "Gemm" in op_types(lowered(tmp_path, sketch.pivot(layer, bits=8, block=16)))


def test_other_blocks_are_told_and_left(tmp_path: Path) -> None:
    sketch = Sketch()
    x = sketch.input("x", normal(sketch, 3, 64))
    pivot = sketch.pivot(sketch.op("Gemm", x, sketch.weight(32, 64, bits=4), transB=1), block=16)
    scale = next(i for i in pivot.graph.initializer if i.dims == [32, 4] and i.data_type == onnx.TensorProto.FLOAT)
    odd = onnx.numpy_helper.to_array(scale) * np.linspace(1, 1.4, 4, dtype=np.float32)
    scale.CopyFrom(onnx.numpy_helper.from_array(odd, scale.name))
    result = lowered(tmp_path, pivot)
    assert [d.code for d in result.diagnostics] == ["qualcomm.float16-blocks"]
    assert json.loads(result.paths["options"].read_text()) == {}


@given(st.lists(st.integers(1, 16), min_size=3, max_size=3), st.floats(1e-4, 10))
def test_lpbq_scales_are_recognized(steps: list[int], unit: float) -> None:
    def node(scales: list[float]) -> ir.Node:
        value = ir.Value(name="s", const_value=ir.tensor(np.array([scales], np.float32), name="s"))
        return ir.node("DequantizeLinear", [ir.Value(name="w"), value], attributes={"axis": 1, "block_size": 16})

    assert has_lpbq_scales(node([16 * unit, *(k * unit for k in steps)]))
    assert not has_lpbq_scales(node([16 * unit, *((k - 0.5) * unit for k in steps)]))


def test_sigmoid_gives_its_kernels_encoding(tmp_path: Path) -> None:
    sketch = Sketch()
    result = lowered(tmp_path, sketch.pivot(sketch.op("Sigmoid", sketch.input("x", normal(sketch, 4, 8)))))
    model = ir.load(result.paths["onnx"])
    sigmoid = next(n for n in model.graph if n.op_type == "Sigmoid")
    ((quantizer, _),) = sigmoid.outputs[0].uses()
    assert quantizer.inputs[1].const_value.numpy() == 2.0**-16


def test_a_dynamic_shape_is_an_input_error(tmp_path: Path) -> None:
    sketch = Sketch()
    pivot = sketch.pivot(sketch.op("Relu", sketch.input("x", normal(sketch, 4, 8))))
    pivot.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "n"
    with pytest.raises(InputError, match="not static"):
        lowered(tmp_path, pivot)


def test_images_leave_as_integers_with_their_channels_last_only(tmp_path: Path) -> None:
    """With channels first the change to NHWC leaves a Transpose at the boundary, which the compiler refuses on integers."""
    sketch = Sketch()
    image = sketch.op(
        "Conv", sketch.input("x", normal(sketch, 1, 3, 12, 10)), sketch.weight(8, 3, 3, 3), pads=[1, 1, 1, 1]
    )
    pivot = sketch.pivot(image, sketch.op("Transpose", sketch.op("Relu", image), perm=[0, 2, 3, 1]))
    result = lowered(tmp_path, pivot)
    first, last = onnx.load(result.paths["onnx"]).graph.output
    assert first.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    assert last.type.tensor_type.elem_type == onnx.TensorProto.UINT16
    expected, found = run_on_cpu(pivot, sketch.feeds), run_lowered(result, sketch.feeds)
    assert all(sqnr_db(expected[name], found[name]) > 70 for name in expected)
