"""What the Apple backend says about graphs, without any toolchain."""

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from pocketport.diagnostics import Diagnostic, Severity
from pocketport.errors import UsageError
from pocketport.targets.apple import backend
from pocketport.targets.apple.coreml_emitter import mil_names
from pocketport.targets.apple.lint import lint
from pocketport.targets.apple.lowering import TABLE
from pocketport.targets.apple.target import chip_of, chips
from pocketport.targets.contract import Target

from .op_graphs import every_op

TARGET = Target("apple", "a17-pro")


def graph(
    nodes: list[onnx.NodeProto], weights: dict[str, np.ndarray], shape: tuple[int | str, ...] = (4, 8)
) -> ir.Model:
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)]
    outputs = [helper.make_empty_tensor_value_info(nodes[-1].output[0])]
    tensors = [numpy_helper.from_array(np.asarray(a), n) for n, a in weights.items()]
    made = helper.make_graph(nodes, "g", inputs, outputs, tensors)
    return ir.from_proto(helper.make_model(made, opset_imports=[helper.make_opsetid("", 23)], ir_version=11))


def errors(found: tuple[Diagnostic, ...]) -> list[Diagnostic]:
    return [d for d in found if d.severity is Severity.ERROR]


def test_legality_lists_what_is_lowered() -> None:
    assert backend.legality(TARGET).ops == frozenset(TABLE)


def test_every_op_is_taken() -> None:
    assert backend.check("main", ir.from_proto(every_op()[0]), TARGET) == ()


def test_a_refused_op_is_named_once_and_what_follows_is_passed_over() -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["a"], name="first"),
        helper.make_node("LSTM", ["a", "w", "w"], ["b"], name="the.cell", hidden_size=2),
        helper.make_node("Relu", ["b"], ["c"], name="after"),
        helper.make_node("Det", ["x"], ["d"], name="the.determinant"),
    ]
    found = errors(backend.check("main", graph(nodes, {"w": np.zeros((1, 8, 2), np.float32)}), TARGET))
    assert ["the.cell" in found[0].where, "the.determinant" in found[1].where, len(found)] == [True, True, 2]
    assert "recurrent" in found[0].why and all(d.fix for d in found)


@pytest.mark.parametrize(
    ("node", "weights", "why"),
    [
        (helper.make_node("QuantizeLinear", ["x", "s", "z"], ["y"]), {"s": np.float32(1), "z": np.int16(0)}, "int16"),
        (helper.make_node("QuantizeLinear", ["x", "s", "z"], ["y"], axis=1),
         {"s": np.ones(8, np.float32), "z": np.zeros(8, np.int8)}, "per tensor"),
        (helper.make_node("DequantizeLinear", ["w", "s"], ["y"]),
         {"w": np.zeros(4, ml_dtypes.int2), "s": np.float32(1)}, "int2"),
        (helper.make_node("Gemm", ["x", "w"], ["y"], alpha=2.0), {"w": np.ones((8, 2), np.float32)}, "alpha"),
        (helper.make_node("Slice", ["x", "b", "e", "a", "t"], ["y"]),
         {"b": np.array([3]), "e": np.array([0]), "a": np.array([0]), "t": np.array([-1])}, "negative steps"),
        (helper.make_node("Pad", ["x", "p"], ["y"], mode="reflect"), {"p": np.array([0, 1, 0, 1])}, "constant padding"),
        (helper.make_node("Reshape", ["x", "s"], ["y"]), {"s": np.array([-1, 2])}, ""),
    ],
)  # fmt: skip
def test_a_form_that_is_not_taken_says_why(node: onnx.NodeProto, weights: dict[str, np.ndarray], why: str) -> None:
    node.name = "the.node"
    found = errors(backend.check("main", graph([node], weights), TARGET))
    if not why:
        assert found == []
        return
    assert len(found) == 1 and why in found[0].why and "the.node" in found[0].where


def test_a_dynamic_input_is_named() -> None:
    found = errors(backend.check("main", graph([helper.make_node("Relu", ["x"], ["y"])], {}, ("batch", 8)), TARGET))
    assert len(found) == 1 and "input x" in found[0].where and "static" in found[0].why


def test_constants_beyond_float16_are_told() -> None:
    node = helper.make_node("Add", ["x", "mask"], ["y"])
    found = backend.check("main", graph([node], {"mask": np.float32(-3e38)}), TARGET)
    assert [d.code for d in found] == ["apple.float16-range"] and "mask" in found[0].where


def test_an_unknown_chip_suggests_the_nearest() -> None:
    with pytest.raises(UsageError, match="a17-pro"):
        backend.legality(Target("apple", "a17pro"))
    assert {"a14", "a18-pro", "m4"} <= set(chips())


def test_lint_names_what_stays_off_the_engine() -> None:
    nodes = [
        helper.make_node("Cast", ["x"], ["i"], name="ids", to=TensorProto.INT32),
        helper.make_node("Gather", ["table", "i"], ["rows"], name="lookup"),
        helper.make_node("Relu", ["rows"], ["y"], name="act"),
    ]
    model = graph(nodes, {"table": np.ones((20000, 2), np.float32)})
    offload, found = lint(model, "embed", chip_of(TARGET))
    assert (offload.npu_ops, offload.total_ops) == (2, 3)
    assert offload.elsewhere == ("Gather lookup",) and "predicted" in offload.source
    assert {d.code for d in found} == {"apple.residency-unobserved", "apple.off-engine"}
    wide = graph([helper.make_node("Relu", ["x"], ["y"], name="wide")], {}, (1, 20000))
    assert lint(wide, "main", chip_of(Target("apple", "a14")))[0].npu_ops == 0
    assert lint(wide, "main", chip_of(TARGET))[0].npu_ops == 1


def test_core_ml_names_are_identifiers_and_distinct() -> None:
    names = mil_names(["a.b", "a/b", "1x", "a_b", "a.b"])
    assert list(names) == ["a.b", "a/b", "1x", "a_b"]
    assert len(set(names.values())) == 4 and all(n.isidentifier() for n in names.values())
