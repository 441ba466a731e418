"""MLPs in parts: the sum of the parts is the whole, parts are sorted slices of it, and bits go where they count."""

from collections.abc import Mapping
from itertools import pairwise

import numpy as np
import onnx_ir as ir
import pytest
from small_models import bundle_of, legality, outputs

from pocketport.calibration.capture import calibrate
from pocketport.calibration.metrics import sqnr_db
from pocketport.compress.builder import GraphBuilder
from pocketport.compress.bundle import ModelBundle
from pocketport.compress.conditioning import make_rewrite
from pocketport.compress.conditioning.condition import condition
from pocketport.compress.executors.ort_executor import Arrays
from pocketport.compress.pivot.apply import apply_plan
from pocketport.compress.planning.plan import TensorKind, make_plan
from pocketport.compress.recipe import Conditioning, Recipe
from pocketport.errors import UsageError, VerificationError

ROWS, WIDTH, INNER, OUT = 8, 32, 48, 16
LOUD = [3, 11, 20, 40]
Feeds = list[tuple[str, Arrays]]


class Mlp:
    """A graph of linear layers in the making, x [8, 32]."""

    def __init__(self, *, transposed: bool = True) -> None:
        self.rng = np.random.default_rng(0)
        self.g = GraphBuilder("main")
        self.transposed = transposed
        self.x = self.g.input("x", (ROWS, WIDTH))

    def matrix(self, n: int, k: int) -> np.ndarray:
        return self.rng.standard_normal((n, k)) * k**-0.5

    def linear(self, x: ir.Value, path: str, array: np.ndarray, *, bias: bool = False) -> ir.Value:
        """Gemm with its bias inside, or MatMul with an Add behind it."""
        laid = np.asarray(array if self.transposed else array.T, np.float32, order="C")
        weight = self.g.weight(f"{path}.weight", laid)
        added = [self.g.weight(f"{path}.bias", self.rng.standard_normal(len(array)).astype(np.float32))] if bias else []
        if self.transposed:
            return self.g.node("Gemm", [x, weight, *added], path, transB=1)
        y = self.g.node("MatMul", [x, weight], path)
        return self.g.node("Add", [y, *added], f"{path}.add") if bias else y

    def done(self, *outputs: ir.Value) -> tuple[ModelBundle, Feeds]:
        for output in outputs:
            self.g.output(output)
        feeds = [("main", {"x": self.rng.standard_normal((ROWS, WIDTH)).astype(np.float32)}) for _ in range(12)]
        return bundle_of(main=self.g.finish()), feeds


def gated(*, transposed: bool = True, also: bool = False) -> tuple[ModelBundle, Feeds]:
    """A gated MLP, four channels of which are loud; `also`: a Softmax reads the hidden channels too."""
    m = Mlp(transposed=transposed)
    loud = np.ones(INNER)
    loud[LOUD] = 20
    gate, up = (
        m.linear(m.x, "gate", m.matrix(INNER, WIDTH)),
        m.linear(m.x, "up", m.matrix(INNER, WIDTH) * loud[:, None]),
    )
    silu = m.g.node("Mul", [gate, m.g.node("Sigmoid", [gate], "sigmoid")], "silu")
    product = m.g.node("Mul", [silu, up], "product")
    down = m.linear(product, "down", m.matrix(OUT, INNER))
    return m.done(down, m.g.node("Softmax", [product], "softmax")) if also else m.done(down)


def biased(*, transposed: bool = True) -> tuple[ModelBundle, Feeds]:
    """Two layers with biases and GELU between them."""
    m = Mlp(transposed=transposed)
    hidden = m.g.node("Gelu", [m.linear(m.x, "fc1", m.matrix(INNER, WIDTH), bias=True)], "gelu")
    return m.done(m.linear(hidden, "fc2", m.matrix(OUT, INNER), bias=True))


def split(
    bundle: ModelBundle, feeds: Feeds, gradients: Mapping[str, np.ndarray] | None = None, **options: float | str
) -> ModelBundle:
    steps = [Conditioning.model_validate({"rewrite": "split_hidden", "options": options})]
    found = (
        None if gradients is None else lambda _, nodes: {k: g for k, g in gradients.items() if k[5:] in nodes["main"]}
    )
    return condition(bundle, steps, lambda _: iter(feeds), chained=False, gradients=found)[0]


def weights(bundle: ModelBundle) -> dict[str, np.ndarray]:
    found = bundle["main"].graph.graph.initializers.values()
    return {str(v.name): v.const_value.numpy() for v in found if v.const_value is not None}


@pytest.mark.parametrize("parts", [2, 3])
@pytest.mark.parametrize("transposed", [True, False])
def test_parts_are_slices_sorted_by_what_channels_add(transposed: bool, parts: int) -> None:
    bundle, feeds = gated(transposed=transposed)
    after = split(bundle, feeds, parts=parts)
    assert sqnr_db(outputs(bundle, feeds), outputs(after, feeds)) > 110
    old, new = weights(bundle), weights(after)
    assert set(new) == {f"{name}.weight.{p}" for name in ("gate", "up", "down") for p in range(parts)}

    def laid(array: np.ndarray) -> np.ndarray:
        return array if transposed else array.T

    hidden = outputs(bundle, feeds, "product").reshape(-1, INNER)
    columns = laid(old["down.weight"]).astype(np.float64)
    order = np.argsort(np.square(hidden).mean(0) * np.square(columns).sum(0))
    for p, channels in enumerate(np.split(order, parts)):
        np.testing.assert_array_equal(laid(new[f"down.weight.{p}"]), laid(old["down.weight"])[:, channels])
        for name in ("gate", "up"):
            np.testing.assert_array_equal(laid(new[f"{name}.weight.{p}"]), laid(old[f"{name}.weight"])[channels])
    assert set(LOUD) <= set(order[-INNER // parts :].tolist())
    names = [node.name for node in after["main"].graph.graph]
    assert names.count("down.sum") == 1 and not {"gate", "up", "down", "silu"} & set(names)
    assert all(v.shape is not None and v.dtype is not None for n in after["main"].graph.graph for v in n.outputs)


@pytest.mark.parametrize("transposed", [True, False])
def test_a_bias_is_added_once(transposed: bool) -> None:
    bundle, feeds = biased(transposed=transposed)
    after = split(bundle, feeds)
    assert sqnr_db(outputs(bundle, feeds), outputs(after, feeds)) > 110
    new = weights(after)
    np.testing.assert_array_equal(
        np.sort(np.concatenate([new["fc1.bias.0"], new["fc1.bias.1"]])), np.sort(weights(bundle)["fc1.bias"])
    )
    np.testing.assert_array_equal(new["fc2.bias"], weights(bundle)["fc2.bias"])
    before = [node.op_type for node in bundle["main"].graph.graph]
    ops = [node.op_type for node in after["main"].graph.graph]
    assert len(ops) == len(before) + (len(before) if transposed else len(before) - 1) + 1  # each twice, and the sum


def test_of_layers_in_a_row_each_is_split_once() -> None:
    m = Mlp()
    x = m.x
    for i, (n, k) in enumerate(pairwise((OUT, INNER, INNER, INNER, WIDTH)[::-1])):
        x = m.linear(x if i == 0 else m.g.node("Relu", [x], f"relu{i}"), f"fc{i}", m.matrix(k, n))
    bundle, feeds = m.done(x)
    after = split(bundle, feeds)
    assert sqnr_db(outputs(bundle, feeds), outputs(after, feeds)) > 110
    assert set(weights(after)) == {f"fc{i}.weight.{p}" for i in range(4) for p in range(2)}


def test_by_gradients_channels_are_sorted_by_the_product_over_what_writes_them() -> None:
    bundle, feeds = gated()
    rng = np.random.default_rng(4)
    gate, up = (np.exp(rng.standard_normal(INNER)) for _ in range(2))
    after = split(bundle, feeds, {"main/gate": gate, "main/up": up, "main/down": np.ones(OUT)}, by="gradients")
    for p, channels in enumerate(np.split(np.argsort(gate * up), 2)):
        np.testing.assert_array_equal(weights(after)[f"up.weight.{p}"], weights(bundle)["up.weight"][channels])
    with pytest.raises(UsageError, match="no answer depends on main/product"):
        split(bundle, feeds, {}, by="gradients")
    with pytest.raises(UsageError, match="no answers whose gradients"):
        split(bundle, feeds, by="gradients")


@pytest.mark.parametrize(
    ("options", "message"), [({"parts": 1}, "parts is 1"), ({"parts": 2.5}, "parts is 2.5"), ({"by": "size"}, "by is 'size'")]
)  # fmt: skip
def test_options_out_of_range(options: dict[str, float | str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make_rewrite("split_hidden", options)


@pytest.mark.parametrize(
    ("also", "parts", "reason"), [(True, 2, "Softmax softmax does not pass on"), (False, 5, "5 equal parts of the 48")]
)
def test_what_stands_in_the_way(also: bool, parts: int, reason: str) -> None:
    bundle, feeds = gated(also=also)
    with pytest.raises(VerificationError, match=reason):
        split(bundle, feeds, parts=parts)


def test_a_name_that_is_taken() -> None:
    m = Mlp()
    hidden = m.g.node("Relu", [m.linear(m.x, "fc", m.matrix(INNER, WIDTH))], "relu")
    shift = m.g.weight("fc.weight.1", np.ones(OUT, np.float32))
    bundle, feeds = m.done(m.g.node("Add", [m.linear(hidden, "out", m.matrix(OUT, INNER)), shift], "shifted"))
    with pytest.raises(VerificationError, match=r"called as parts of fc\.weight would be"):
        split(bundle, feeds)


def test_bits_for_the_loud_part_are_worth_more_than_bits_for_another() -> None:
    bundle, feeds = gated()
    after, expected = split(bundle, feeds, parts=6), outputs(bundle, feeds)
    chip = legality(weights={str(bits): {"dtype": f"int{bits}", "granularities": ["c"]} for bits in (4, 8)})

    def rounded(eight: str) -> tuple[float, int]:
        """(dB, bits of weights), with one part in 8 bits"""
        rules = [{"algorithm": "rtn", "scheme": "w4cfp32"}, {"scheme": "w8cfp32", "name": f"*.{eight}"}]
        plan = make_plan(after, Recipe.model_validate({"name": "r", "rules": rules}), "small", chip)
        graph = apply_plan(after, plan, calibrate({"main": after["main"].graph}, feeds))[0]
        tensors = [t for c in plan for t in c.tensors if t.kind is TensorKind.WEIGHT]
        assert len(tensors) == 18 and all(t.quantized for t in tensors)
        return sqnr_db(expected, outputs(graph, feeds)), sum(t.elements * int(t.scheme[1]) for t in tensors)

    loud, bits = rounded("5")
    for other in "024":
        quiet, same = rounded(other)
        assert same == bits
        assert loud > quiet + 10
