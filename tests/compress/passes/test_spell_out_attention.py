import numpy as np
import onnx_ir as ir
import pytest
from onnx import helper

from pocketport.compress.passes.simplify import simplify

from .graphs import computed, ops

RNG = np.random.default_rng(0)
CASES = {
    "plain": (4, None, {}), "scaled": (4, None, {"scale": 0.7}), "causal": (4, None, {"is_causal": 1}), "grouped heads": (2, None, {}),
    "a float mask": (4, np.float32, {}), "a boolean mask": (4, np.bool_, {}), "both": (2, np.bool_, {"is_causal": 1, "scale": 0.2}),
}  # fmt: skip


def attention(
    groups: int, mask: type[np.generic] | None, attributes: dict[str, float]
) -> tuple[ir.Model, dict[str, np.ndarray]]:
    feeds: dict[str, np.ndarray] = {
        n: RNG.normal(size=(2, heads, 6, 8)).astype(np.float32) for n, heads in (("q", 4), ("k", groups), ("v", groups))
    }
    if mask is np.bool_:
        visible = np.arange(6) < np.array([6, 3]).reshape(2, 1, 1, 1)
        feeds["m"] = np.array(np.broadcast_to(visible, (2, 1, 6, 6)))
    elif mask is not None:
        feeds["m"] = RNG.normal(size=(2, 1, 6, 6)).astype(np.float32)
    inputs = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape) for n, a in feeds.items()
    ]
    nodes = [helper.make_node("Attention", list(feeds), ["a"], **attributes), helper.make_node("Relu", ["a"], ["y"])]
    graph = helper.make_graph(nodes, "g", inputs, [helper.make_tensor_value_info("y", 1, None)])
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=11)), feeds


@pytest.mark.parametrize("case", CASES)
def test_attention_is_products_and_a_softmax(case: str) -> None:
    model, feeds = attention(*CASES[case])
    simple = simplify(model)
    assert not {"Attention", "Where"} & set(ops(simple)) and ops(simple)["MatMul"] == 2
    np.testing.assert_allclose(computed(simple, feeds), computed(model, feeds), rtol=1e-4, atol=1e-6)


def test_a_soft_cap_stays() -> None:
    model, _ = attention(4, None, {"softcap": 5.0})
    assert ops(simplify(model))["Attention"] == 1
