"""The torch executor against onnxruntime: whole components, and every op on its own."""

import numpy as np
import onnx_ir as ir
import pytest
import torch

from pocketport.compress.builder import GraphBuilder
from pocketport.compress.bundle import ModelBundle
from pocketport.compress.executors import torch_executor
from pocketport.compress.executors.ort_executor import OrtExecutor
from pocketport.compress.executors.torch_executor import TorchExecutor
from pocketport.compress.families.registry import Lengths, family_of, host_of
from pocketport.compress.ingest import REFERENCE, path_of
from pocketport.compress.sources.open import open_source
from pocketport.errors import InputError

TOKENS = 32


@pytest.fixture(autouse=True)
def float_products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_executor, "matrix_dtype", lambda: torch.float32)


@pytest.fixture(scope="module")
def reference() -> ModelBundle:
    source = open_source(path_of(REFERENCE))
    return family_of(source).load(source, REFERENCE, Lengths(prompt=TOKENS, cache=2 * TOKENS))


def feeds_of(graph: ir.Model) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    feeds = {}
    for value in graph.graph.inputs:
        assert value.dtype is not None and value.shape is not None
        shape = tuple(int(d) for d in value.shape if isinstance(d, int))
        kind = value.dtype.numpy()
        feeds[str(value.name)] = (
            rng.integers(0, 100, shape).astype(kind) if kind.kind == "i" else rng.normal(size=shape).astype(kind)
        )
    return feeds


@pytest.mark.parametrize("component", ["vision", "connector", "embed", "prefill", "decode"])
def test_components_agree_with_onnxruntime(reference: ModelBundle, component: str) -> None:
    graph = reference[component].graph
    feeds = feeds_of(graph)
    if component == "prefill":
        embeds = np.random.default_rng(1).normal(size=(TOKENS, 256)).astype(np.float32)
        feeds = host_of(reference).prefill_feeds(embeds, TOKENS - 5)
    expected, found = OrtExecutor(graph).run(feeds), TorchExecutor(graph).run(feeds)
    assert expected.keys() == found.keys()
    for name, array in expected.items():
        scale = float(np.abs(array).max())
        np.testing.assert_allclose(found[name], array, atol=2e-5 * scale, err_msg=name)


def single(op: str, shapes: list[tuple[int, ...]], **attributes: object) -> ir.Model:
    g = GraphBuilder("main")
    inputs = [g.input(f"x{i}", shape) for i, shape in enumerate(shapes)]
    g.output(g.node(op, inputs, "node", output="y", **attributes))
    return g.finish()


@pytest.mark.parametrize(
    "graph",
    [
        single("Add", [(3, 4), (4,)]),
        single("AveragePool", [(1, 2, 7, 6)], kernel_shape=[3, 2], strides=[2, 1], pads=[1, 0, 1, 1]),
        single("AveragePool", [(1, 2, 7, 6)], kernel_shape=[2, 2], pads=[1, 1, 0, 0], count_include_pad=1),
        single("Concat", [(2, 3), (2, 5)], axis=1),
        single(
            "Conv", [(1, 4, 5, 6), (6, 2, 3, 2), (6,)], group=2, pads=[1, 0, 2, 1], strides=[2, 1], dilations=[1, 2]
        ),
        single("Conv", [(1, 4, 5), (6, 4, 3)], pads=[1, 1]),
        single(
            "ConvTranspose",
            [(1, 4, 5, 6), (4, 3, 3, 2), (6,)],
            group=2,
            pads=[1, 0, 1, 0],
            strides=[2, 1],
            output_padding=[1, 0],
        ),
        single("Div", [(3, 4), (3, 1)]),
        single("Exp", [(3, 4)]),
        single("Gelu", [(3, 4)], approximate="none"),
        single("Gelu", [(3, 4)], approximate="tanh"),
        single("Gemm", [(3, 4), (4, 5)]),
        single("Gemm", [(3, 4), (5, 4), (5,)], transB=1),
        single("GlobalAveragePool", [(2, 3, 4, 5)]),
        single("HardSigmoid", [(3, 4)], alpha=0.3, beta=0.4),
        single("HardSwish", [(3, 4)]),
        single("LayerNormalization", [(3, 4), (4,), (4,)], axis=-1, epsilon=1e-3),
        single("MatMul", [(2, 3, 4), (2, 4, 5)]),
        single("MaxPool", [(1, 2, 7, 6)], kernel_shape=[3, 2], strides=[2, 1], pads=[1, 0, 1, 1]),
        single("Mul", [(3, 4), (1, 4)]),
        single("RMSNormalization", [(3, 4), (4,)], axis=-1, epsilon=1e-3),
        single("Relu", [(3, 4)]),
        single("Sigmoid", [(3, 4)]),
        single("Softmax", [(3, 4)], axis=0),
        single("Sub", [(3, 4), (3, 4)]),
        single("Tanh", [(3, 4)]),
        single("Transpose", [(2, 3, 4)], perm=[2, 0, 1]),
    ],
    ids=lambda graph: next(iter(graph.graph)).op_type,
)
def test_ops_agree_with_onnxruntime(graph: ir.Model) -> None:
    feeds = feeds_of(graph)
    found = TorchExecutor(graph).run(feeds)["y"]
    np.testing.assert_allclose(found, OrtExecutor(graph).run(feeds)["y"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("keepdims", [0, 1])
def test_means_agree_with_onnxruntime(keepdims: int) -> None:
    g = GraphBuilder("main")
    x = g.input("x0", (2, 3, 4))
    g.output(g.node("ReduceMean", [x, g.integers([0, -1])], "node", output="y", keepdims=keepdims))
    test_ops_agree_with_onnxruntime(g.finish())


def with_constants(
    op: str, shape: tuple[int, ...], constants: list[np.ndarray | None], **attributes: object
) -> ir.Model:
    g = GraphBuilder("main")
    others = [None if c is None else g.weight(f"c{i}", c) for i, c in enumerate(constants)]
    g.output(g.node(op, [g.input("x0", shape), *others], "node", output="y", **attributes))
    return g.finish()


@pytest.mark.parametrize(
    "graph",
    [
        with_constants("Clip", (3, 4), [np.array(-0.5, np.float32), np.array(0.7, np.float32)]),
        with_constants("Clip", (3, 4), [None, np.array(0.7, np.float32)]),
        with_constants("ReduceL2", (2, 3, 4), [np.array([-1])], keepdims=1),
        with_constants("Resize", (1, 2, 3, 4), [None, np.array([1, 1, 2, 3], np.float32)], mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor"),
        with_constants("Resize", (1, 2, 3, 4), [None, None, np.array([1, 2, 6, 8])], mode="nearest"),
        with_constants("Squeeze", (3, 1, 4, 1), [np.array([1, -1])]),
        with_constants("Unsqueeze", (3, 4), [np.array([0, -1])]),
    ],
    ids=lambda graph: next(iter(graph.graph)).op_type,
)  # fmt: skip
def test_ops_with_constants_agree_with_onnxruntime(graph: ir.Model) -> None:
    test_ops_agree_with_onnxruntime(graph)


@pytest.mark.parametrize(
    ("graph", "match"),
    [
        (single("Conv", [(1, 2, 5), (2, 2, 3)], auto_pad="SAME_UPPER"), "auto_pad"),
        (single("MaxPool", [(1, 2, 5)], kernel_shape=[2], strides=[2], ceil_mode=1), "ceil_mode"),
        (single("ConvTranspose", [(1, 2, 5), (2, 2, 3)], pads=[0, 1]), "pads"),
        (
            with_constants("Resize", (1, 1, 2, 2), [None, np.array([1, 1, 1.5, 2], np.float32)], mode="nearest"),
            "pixels",
        ),
    ],
)
def test_attributes_that_are_not_there_are_named(graph: ir.Model, match: str) -> None:
    with pytest.raises(InputError, match=match) as caught:
        TorchExecutor(graph).run(feeds_of(graph))
    assert "node" in caught.value.where


def test_an_op_that_is_not_there_is_named() -> None:
    with pytest.raises(InputError, match="Erf") as caught:
        TorchExecutor(single("Erf", [(3,)])).run({"x0": np.zeros(3, np.float32)})
    assert "node" in caught.value.where


def test_bfloat16_products_stay_near(reference: ModelBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_executor, "matrix_dtype", lambda: torch.bfloat16)
    graph = reference["vision"].graph
    feeds = feeds_of(graph)
    expected, found = (
        OrtExecutor(graph).run(feeds)["vision_features"],
        TorchExecutor(graph).run(feeds)["vision_features"],
    )
    error = float(np.square(found - expected).sum() / np.square(expected).sum())
    assert 1e-9 < error < 1e-3  # 8 bits of mantissa in products, float32 in sums: between 30 and 90 dB
