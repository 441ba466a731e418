"""Small float bundles for the quantization tests."""

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import onnx_ir as ir

from pocketport.compress.builder import GraphBuilder
from pocketport.compress.bundle import Component, ModelBundle
from pocketport.compress.executors.ort_executor import Arrays, OrtExecutor
from pocketport.compress.planning.legality import Legality

ROWS, WIDTH, VOCAB, HEADS = 8, 32, 64, 2
TERMS = (32, 48, 16)


def legality(**changes: object) -> Legality:
    document = {
        "tested_with": "nothing", "defaults": {"main": "w8a16", "head": "w8a16"},
        "activations": {"8": {"dtype": "uint8", "symmetric": False}, "16": {"dtype": "uint16", "symmetric": False}},
        "weights": {
            "8": {"dtype": "int8", "granularities": ["t", "c"]},
            "4": {"dtype": "int4", "granularities": ["c", "b"], "blocks": [16, 32]},
        },
    }  # fmt: skip
    return Legality.model_validate({**document, **changes})


def block(*, name: str = "main", cached: bool = False, weights: int = 0) -> ir.Model:
    """A decoder block behind an embedding: table, norms, attention with a mask, cache output, SiLU, head."""
    g = GraphBuilder(name)
    fixed = np.random.default_rng(weights)

    def matrix(n: int, k: int) -> np.ndarray:
        return (fixed.standard_normal((n, k)) * k**-0.5).astype(np.float32)

    def linear(x: ir.Value, path: str, n: int, k: int, *, bias: bool = True) -> ir.Value:
        operands = [x, g.weight(f"{path}.weight", matrix(n, k))]
        if bias:
            operands.append(g.weight(f"{path}.bias", fixed.standard_normal(n).astype(np.float32)))
        return g.node("Gemm", operands, path, transB=1)

    ids = g.input("input_ids", (ROWS,), ir.DataType.INT32)
    bias = g.input("attention_bias", (1, ROWS, 2 * ROWS if cached else ROWS))
    table = g.weight("embed.weight", fixed.standard_normal((VOCAB, WIDTH)).astype(np.float32))
    x = g.node("Gather", [table, ids], "embed", axis=0)
    gamma = g.weight("norm.weight", fixed.uniform(0.5, 1.5, WIDTH).astype(np.float32))
    beta = g.weight("norm.bias", (fixed.standard_normal(WIDTH) * 0.1).astype(np.float32))
    h = g.node("LayerNormalization", [x, gamma, beta], "norm", axis=-1)
    heads = []
    for part in ("q", "k", "v"):
        y = linear(h, f"{part}_proj", WIDTH, WIDTH, bias=part != "k")
        if part == "q":
            y = g.node(
                "Mul", [y, g.weight("attention_scale", np.array((WIDTH // HEADS) ** -0.5, np.float32))], "q.scale"
            )
        y = g.reshape(y, (ROWS, HEADS, WIDTH // HEADS), f"{part}.split")
        heads.append(g.transpose(y, (1, 0, 2), f"{part}.heads"))
    q, k, v = heads
    g.output(g.reshape(k, (1, HEADS, ROWS, WIDTH // HEADS), "k.cache", output="present_key"))
    if cached:
        past = g.input("past_key", (1, HEADS, ROWS, WIDTH // HEADS))
        flat = g.reshape(past, (HEADS, ROWS, WIDTH // HEADS), "past_key.flat")
        k = g.node("Concat", [flat, k], "keys", axis=1)
        v = g.node("Concat", [v, v], "values", axis=1)
    scores = g.node("MatMul", [q, g.transpose(k, (0, 2, 1), "k.transposed")], "scores")
    masked = g.node("Add", [scores, bias], "masked_scores")
    context = g.node("MatMul", [g.node("Softmax", [masked], "weights", axis=-1), v], "context")
    context = g.reshape(g.transpose(context, (1, 0, 2), "context.rows"), (ROWS, WIDTH), "context.merged")
    x = g.node("Add", [x, linear(context, "o_proj", WIDTH, WIDTH)], "residual")
    gate = linear(x, "gate_proj", WIDTH, WIDTH, bias=False)
    gate = g.node("Mul", [gate, g.node("Sigmoid", [gate], "sigmoid")], "silu")
    head = g.node(
        "Gemm", [gate, g.weight("lm_head.weight", matrix(VOCAB, WIDTH))], "lm_head", transB=1, output="logits"
    )
    g.output(head, first=True)
    return g.finish()


def block_feeds(rng: np.random.Generator, *, cached: bool = False) -> dict[str, np.ndarray]:
    columns = 2 * ROWS if cached else ROWS
    mask = np.where(np.tril(np.ones((ROWS, columns)), columns - ROWS) > 0, 0.0, -100.0).astype(np.float32)[None]
    feeds: dict[str, np.ndarray] = {"input_ids": rng.integers(0, VOCAB, ROWS).astype(np.int32), "attention_bias": mask}
    if cached:
        feeds["past_key"] = rng.standard_normal((1, HEADS, ROWS, WIDTH // HEADS)).astype(np.float32)
    return feeds


def cnn(rng: np.random.Generator) -> ir.Model:
    """Conv + Relu, depthwise Conv + Clip, MatMul with a [K, N] weight and a constant Add."""
    g = GraphBuilder("main")
    x = g.input("pixels", (1, 3, 8, 8))
    w = rng.standard_normal((8, 3, 3, 3)).astype(np.float32) * 0.2
    x = g.node("Conv", [x, g.weight("conv.weight", w), g.weight("conv.bias", w.sum((1, 2, 3)))], "conv", pads=[1] * 4)
    x = g.node("Relu", [x], "relu")
    w = rng.standard_normal((8, 1, 3, 3)).astype(np.float32) * 0.4
    x = g.node("Conv", [x, g.weight("depthwise.weight", w)], "depthwise", pads=[1] * 4, group=8)
    bounds = [g.weight(n, np.array(v, np.float32)) for n, v in (("zero", 0.0), ("six", 6.0))]
    x = g.node("Clip", [x, *bounds], "relu6")
    x = g.node("MaxPool", [x], "pool", kernel_shape=[2, 2], strides=[2, 2])
    x = g.reshape(g.transpose(x, (0, 2, 3, 1), "nhwc"), (16, 8), "rows")
    x = g.node("MatMul", [x, g.weight("fc.weight", rng.standard_normal((8, 5)).astype(np.float32))], "fc")
    x = g.node("Add", [x, g.weight("fc.bias", rng.standard_normal(5).astype(np.float32))], "fc.add")
    g.output(g.node("Softmax", [x], "softmax", axis=-1, output="probabilities"))
    return g.finish()


def bundle_of(**graphs: ir.Model) -> ModelBundle:
    return ModelBundle("small", "onnx", "0" * 64, {n: Component(n, graph) for n, graph in graphs.items()})


def block_bundle() -> tuple[ModelBundle, list[tuple[str, dict[str, np.ndarray]]]]:
    rng = np.random.default_rng(0)
    return bundle_of(main=block()), [("main", block_feeds(rng)) for _ in range(4)]


def cnn_bundle() -> tuple[ModelBundle, list[tuple[str, dict[str, np.ndarray]]]]:
    rng = np.random.default_rng(0)
    feeds = [("main", {"pixels": rng.standard_normal((1, 3, 8, 8)).astype(np.float32)}) for _ in range(4)]
    return bundle_of(main=cnn(rng)), feeds


def cached_bundle() -> tuple[ModelBundle, list[tuple[str, dict[str, np.ndarray]]]]:
    """Prefill and decode that share their weights and their keys."""
    rng = np.random.default_rng(0)
    bundle = bundle_of(prefill=block(name="prefill"), decode=block(name="decode", cached=True))
    bundle.shared = [["prefill/present_key", "decode/past_key", "decode/present_key"]]
    feeds = [("prefill", block_feeds(rng)) for _ in range(3)]
    return bundle, [*feeds, *(("decode", block_feeds(rng, cached=True)) for _ in range(3))]


def summed(*, parts: bool, relu: bool = False) -> tuple[ModelBundle, list[tuple[str, Arrays]]]:
    """y = Σ Wₚ·xₚ of `TERMS` columns each, or of one tensor that is all of them, from the same source; layouts differ."""
    fixed = np.random.default_rng(1)
    g = GraphBuilder("main")
    spread = fixed.standard_normal((24, sum(TERMS))).astype(np.float32)
    weight = fixed.standard_normal((32, sum(TERMS))).astype(np.float32)
    source = g.input("source", (ROWS, 24))
    total = None
    cuts = np.cumsum((0, *(TERMS if parts else (sum(TERMS),))))
    for p, (first, last) in enumerate(pairwise(cuts)):
        hidden = g.node("MatMul", [source, g.weight(f"spread.{p}", spread[:, first:last].copy())], f"hidden.{p}")
        x = g.node("Relu", [hidden], f"x.{p}") if relu else hidden
        own = g.weight(f"w.{p}", weight[:, first:last].copy() if p else weight[:, first:last].T.copy())
        bias = [g.weight("bias", fixed.standard_normal(32).astype(np.float32))] if p == 0 else []
        layer = g.node("Gemm", [x, own, *bias], f"down.{p}", transB=int(p > 0))
        total = layer if total is None else g.node("Add", [total, layer], f"sum.{p}")
    assert total is not None
    g.output(g.node("Identity", [total], "end", output="y"))
    feeds = [("main", {"source": fixed.standard_normal((ROWS, 24)).astype(np.float32)}) for _ in range(40)]
    return bundle_of(main=g.finish()), feeds


def produced(graph: ir.Model) -> Iterator[str]:
    return (v.name or "" for node in graph.graph for v in node.outputs)


def outputs(bundle: ModelBundle, feeds: list[tuple[str, Arrays]], tensor: str = "") -> np.ndarray:
    """A tensor (without a name: the first output) of the component ``main`` on every feed, float64."""
    graph = bundle["main"].graph.clone()
    if tensor:
        graph.graph.outputs[:] = [v for n in graph.graph for v in n.outputs if v.name == tensor]
    executor = OrtExecutor(graph)
    return np.stack([executor.run(values)[executor.outputs[0]] for _, values in feeds]).astype(np.float64)
