"""Costs against hand counts and torch's own flop counter."""

import numpy as np
import onnx_ir as ir
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from torch.utils.flop_counter import FlopCounterMode

from pocketport.errors import InputError
from pocketport.profiles.cost import component_cost

SHAPED = tuple[str, tuple[int | str, ...]]


def graph(nodes: list, inputs: list[SHAPED], outputs: list[SHAPED], weights: dict, opset: int = 21) -> ir.Model:
    def info(name: str, shape: tuple[int | str, ...]):
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    tensors = [w if isinstance(w, TensorProto) else _tensor(n, w) for n, w in weights.items()]
    made = helper.make_graph(nodes, "g", [info(*i) for i in inputs], [info(*o) for o in outputs], tensors)
    return ir.from_proto(helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)]))


def _tensor(name: str, array: np.ndarray) -> TensorProto:
    return helper.make_tensor(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape, array.flatten().tolist())


def node(op: str, inputs: str, outputs: str, **attributes):
    return helper.make_node(op, inputs.split(), outputs.split(), name=f"{op}_{outputs}", **attributes)


@settings(max_examples=20, deadline=None)
@given(
    channels=st.sampled_from([(4, 8, 1), (8, 8, 8), (6, 4, 2)]),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 2),
    size=st.integers(5, 9),
)
def test_convolution_as_torch_counts(channels: tuple[int, int, int], kernel: int, stride: int, size: int) -> None:
    inside, outside, groups = channels
    with FlopCounterMode(display=False) as counter:
        y = torch.nn.functional.conv2d(
            torch.zeros(2, inside, size, size),
            torch.zeros(outside, inside // groups, kernel, kernel),
            stride=stride,
            groups=groups,
        )
    model = graph(
        [node("Conv", "x w", "y", strides=[stride] * 2, group=groups)],
        [("x", (2, inside, size, size))], [("y", tuple(y.shape))],
        {"w": np.zeros((outside, inside // groups, kernel, kernel), np.float32)},
    )  # fmt: skip
    assert 2 * component_cost(model).macs == counter.get_total_flops()


@settings(max_examples=20, deadline=None)
@given(batch=st.integers(1, 3), rows=st.integers(1, 5), inner=st.integers(1, 5), columns=st.integers(1, 5))
def test_products_as_torch_counts(batch: int, rows: int, inner: int, columns: int) -> None:
    with FlopCounterMode(display=False) as counter:
        torch.zeros(batch, rows, inner) @ torch.zeros(batch, inner, columns)
    shapes = [("a", (batch, rows, inner)), ("b", (batch, inner, columns))]
    out = [("y", (batch, rows, columns))]
    assert 2 * component_cost(graph([node("MatMul", "a b", "y")], shapes, out, {})).macs == counter.get_total_flops()
    einsum = graph([node("Einsum", "a b", "y", equation="bij,bjk->bik")], shapes, out, {})
    assert 2 * component_cost(einsum).macs == counter.get_total_flops()


def test_transposed_convolution_as_torch_counts() -> None:
    with FlopCounterMode(display=False) as counter:
        y = torch.nn.functional.conv_transpose2d(torch.zeros(1, 4, 5, 5), torch.zeros(4, 3, 2, 2), stride=2)
    model = graph(
        [node("ConvTranspose", "x w", "y", strides=[2, 2])], [("x", (1, 4, 5, 5))], [("y", tuple(y.shape))],
        {"w": np.zeros((4, 3, 2, 2), np.float32)},
    )  # fmt: skip
    assert 2 * component_cost(model).macs == counter.get_total_flops()


def test_by_hand() -> None:
    """Gemm 3×4 → 5, ReLU and Reshape: MACs, bytes at 16-bit floats, and one op left."""
    model = graph(
        [node("Gemm", "x w b", "h", transB=1), node("Relu", "h", "r"), node("Reshape", "r s", "y")],
        [("x", (3, 4))], [("y", (15,))],
        {"w": np.zeros((5, 4), np.float32), "b": np.zeros(5, np.float32), "s": np.array([15], np.int64)},
    )  # fmt: skip
    cost = component_cost(model)
    assert (cost.macs, cost.parameters, cost.ops) == (3 * 4 * 5, 25, 1)
    assert cost.weight_bytes == 25 * 2 + 4
    assert cost.activation_bytes == (12 + 15) * 2
    assert cost.io_bytes == (12 + 15) * 2
    assert component_cost(model, float_bits=32).activation_bytes == (12 + 15) * 4
    assert [op.folded for op in cost.per_op] == [False, True, True]


def quantized() -> ir.Model:
    """int16 activations, int4 weights in two blocks of 4 along axis 1."""
    qdq = {"sx": np.array(0.1, np.float32), "zx": np.array(0, np.int16)}
    weights = {
        "w": helper.make_tensor("w", TensorProto.INT4, (6, 8), np.zeros(24, np.uint8).tobytes(), raw=True),
        "sw": np.full((6, 2), 0.1, np.float32), **qdq,
    }  # fmt: skip
    return graph(
        [
            node("QuantizeLinear", "x sx zx", "xq"), node("DequantizeLinear", "xq sx zx", "xd"),
            node("DequantizeLinear", "w sw", "wd", axis=1, block_size=4), node("Gemm", "xd wd", "h", transB=1),
            node("QuantizeLinear", "h sx zx", "hq"), node("DequantizeLinear", "hq sx zx", "y"),
        ],
        [("x", (2, 8))], [("y", (2, 6))], weights,
    )  # fmt: skip


def test_encoded_widths() -> None:
    cost = component_cost(quantized())
    (gemm,) = cost.per_op
    assert gemm.weight_bytes == 6 * 8 // 2 + 12 * 2, "int4 weights and their scales"
    assert (gemm.read_bytes, gemm.written_bytes) == (2 * 8 * 2, 2 * 6 * 2)
    assert cost.parameters == 48


def test_lookup_reads_rows_only() -> None:
    model = graph(
        [node("Gather", "table ids", "y")], [], [("y", (3, 8))],
        {"table": np.zeros((1000, 8), np.float32), "ids": np.zeros(3, np.int64)},
    )  # fmt: skip
    assert component_cost(model).per_op == (), "all constant: computed before the first run"
    model = graph([node("Gather", "table ids", "y")], [], [("y", (3, 8))], {"table": np.zeros((1000, 8), np.float32)})
    ids = ir.val("ids", ir.DataType.INT64, [3])
    model.graph.inputs.append(ids)
    model.graph[0].replace_input_with(1, ids)
    cost = component_cost(model)
    assert (cost.weight_bytes, cost.streamed_bytes) == (16000, 3 * 8 * 2)


def test_decomposed_activations_count_once() -> None:
    one, half, root = (np.array(v, np.float32) for v in (1.0, 0.5, 1.41421356))
    gelu = [
        node("Div", "x root", "a"), node("Erf", "a", "b"), node("Add", "b one", "c"),
        node("Mul", "c half", "d"), node("Mul", "x d", "g"),
    ]  # fmt: skip
    silu = [node("Sigmoid", "g", "s"), node("Mul", "g s", "y")]
    model = graph(gelu + silu, [("x", (4,))], [("y", (4,))], {"one": one, "half": half, "root": root})
    assert component_cost(model).ops == 2


def test_dynamic_shape_is_an_error_that_names_the_tensor() -> None:
    model = graph([node("Relu", "x", "y")], [("x", ("n", 3))], [("y", ("n", 3))], {})
    with pytest.raises(InputError, match="tensor x"):
        component_cost(model)
