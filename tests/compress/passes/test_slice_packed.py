"""Packed queries, keys and values, against onnxruntime and as torch exports them."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch

from pocketport.compress.graph import shape_of
from pocketport.compress.passes.simplify import simplify
from pocketport.compress.passes.slice_packed import SlicePacked

from .graphs import computed, ops, parsed


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("batch_first", [True, False])
def test_attention_as_torch_exports_it(tmp_path: Path, batch_first: bool) -> None:
    torch.manual_seed(0)
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        layer = torch.nn.MultiheadAttention(24, 3, batch_first=batch_first).eval()
        x = torch.randn((1, 7, 24) if batch_first else (7, 1, 24))
        with torch.no_grad():
            expected = layer(x, x, x, need_weights=False)[0].numpy()
            torch.onnx.export(
                _Alone(layer), (x,), str(tmp_path / "m.onnx"), dynamo=False, opset_version=20, input_names=["x"]
            )
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
    simple = simplify(ir.load(tmp_path / "m.onnx"))
    assert ops(simple)["Slice"] == 3 and ops(simple)["Gather"] == 0
    assert max(len(shape_of(v)) for node in simple.graph for v in node.outputs) <= 4
    np.testing.assert_allclose(computed(simple, {"x": x.numpy()}), expected, rtol=1e-4, atol=1e-5)


class _Alone(torch.nn.Module):
    def __init__(self, layer: torch.nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x, x, x, need_weights=False)[0]


def packed(split: str, perm: str, axis: int, index: int, between: str = "t") -> ir.Model:
    body = f"""parts = Constant<value = int64[4] {split}>() which = Constant<value = int64 {{{index}}}>()
        p = Reshape(x, parts) t = Transpose<perm = {perm}>(p) g = Gather<axis = {axis}>({between}, which) y = Neg(g)"""
    return parsed("float[5,2,12] x", body)


@pytest.mark.parametrize("index", [0, 2, -1])
@pytest.mark.parametrize(
    ("split", "perm", "axis", "taken"),
    [
        ("{5, 2, 3, 4}", [2, 0, 1, 3], 0, True), ("{5, 2, 3, 4}", [0, 2, 1, 3], 1, True), ("{10, 1, 3, 4}", [2, 1, 0, 3], 0, True),
        ("{5, 2, 3, 4}", [2, 1, 0, 3], 0, False), ("{5, 2, 4, 3}", [3, 0, 1, 2], 0, False), ("{5, 4, 3, 2}", [2, 0, 1, 3], 0, False),
    ],
)  # fmt: skip
def test_parts_that_lie_together_in_order(split: str, perm: list[int], axis: int, taken: bool, index: int) -> None:
    model = packed(split, str(perm), axis, index)
    x = np.random.default_rng(0).normal(size=(5, 2, 12)).astype(np.float32)
    simple = simplify(model)
    assert (ops(simple)["Slice"] == 1 and ops(simple)["Transpose"] == 0) == taken
    np.testing.assert_array_equal(computed(simple, {"x": x}), computed(model, {"x": x}))


def test_without_a_transpose_it_is_left() -> None:
    model = packed("{5, 2, 3, 4}", "[2, 0, 1, 3]", 2, 1, between="p")
    assert not SlicePacked()(model).modified
