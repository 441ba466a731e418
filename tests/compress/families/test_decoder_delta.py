"""The delta rule as a graph against its recurrence, token by token in float64."""

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from pocketport.compress.builder import GraphBuilder
from pocketport.compress.executors.ort_executor import OrtExecutor
from pocketport.compress.families.decoder.config import DeltaConfig
from pocketport.compress.families.decoder.delta import DeltaLayer, softplus
from pocketport.compress.families.layers import Layers

WIDTH = 32
EPS = 1e-6
Weights = dict[str, NDArray[np.float32]]


def weights(config: DeltaConfig, rng: np.random.Generator) -> Weights:
    wide, mixed = config.value_heads * config.value_width, config.mixed_width
    shapes: dict[str, tuple[int, ...]] = {
        "in_proj_qkv.weight": (mixed, WIDTH), "in_proj_z.weight": (wide, WIDTH), "in_proj_b.weight": (config.value_heads, WIDTH),
        "in_proj_a.weight": (config.value_heads, WIDTH), "out_proj.weight": (WIDTH, wide), "dt_bias": (config.value_heads,),
        "conv1d.weight": (mixed, 1, config.kernel), "norm.weight": (config.value_width,), "A_log": (config.value_heads,),
    }  # fmt: skip
    return {name: rng.normal(size=shape).astype(np.float32) * 0.4 for name, shape in shapes.items()}


def graph(config: DeltaConfig, state: Weights, rows: int | None) -> ir.Model:
    """Prefill over `rows` tokens, or decode."""
    g = GraphBuilder("delta")
    h = g.input("h", (rows or 1, WIDTH))
    layer = DeltaLayer(Layers(g, {f"m.{name}": tensor for name, tensor in state.items()}), config, "m", 0, WIDTH, EPS)
    g.output(layer.decode(h) if rows is None else layer.prefill(h, rows), first=True)
    return g.finish()


def silu(x: NDArray[Any]) -> NDArray[Any]:
    return x / (1 + np.exp(-x))


def recurrence(config: DeltaConfig, state: Weights, h: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Outputs [T,H] and the last state [value heads, key width, value width]."""
    w = {name: tensor.astype(np.float64) for name, tensor in state.items()}
    h = h.astype(np.float64)
    mixed = np.concatenate([np.zeros((config.kernel - 1, config.mixed_width)), h @ w["in_proj_qkv.weight"].T])
    taps = [mixed[i : i + len(h)] * w["conv1d.weight"][:, 0, i] for i in range(config.kernel)]
    keyed = config.key_heads * config.key_width
    q, k, v = np.split(silu(sum(taps)), [keyed, 2 * keyed], axis=1)
    q, k = (x.reshape(len(h), config.key_heads, config.key_width) for x in (q, k))
    q, k = (x / np.sqrt((x * x).sum(-1, keepdims=True) + 1e-6) for x in (q, k))
    group = config.value_heads // config.key_heads
    q, k = (np.repeat(x, group, axis=1) for x in (q / np.sqrt(config.key_width), k))
    v = v.reshape(len(h), config.value_heads, config.value_width)
    share = 1 / (1 + np.exp(-h @ w["in_proj_b.weight"].T))
    kept = np.exp(-np.exp(w["A_log"]) * np.logaddexp(0, h @ w["in_proj_a.weight"].T + w["dt_bias"]))
    memory = np.zeros((config.value_heads, config.key_width, config.value_width))
    contexts = []
    for t in range(len(h)):
        memory = memory * kept[t][:, None, None]
        known = np.einsum("hkv,hk->hv", memory, k[t])
        memory = memory + np.einsum("hk,hv->hkv", k[t], (v[t] - known) * share[t][:, None])
        contexts.append(np.einsum("hkv,hk->hv", memory, q[t]))
    x = np.stack(contexts)
    x = x / np.sqrt((x * x).mean(-1, keepdims=True) + EPS) * w["norm.weight"]
    return (x.reshape(len(h), -1) * silu(h @ w["in_proj_z.weight"].T)) @ w["out_proj.weight"].T, memory


SHAPES = [DeltaConfig(2, 2, 8, 8, 4), DeltaConfig(2, 6, 16, 8, 2)]


@pytest.mark.parametrize("config", SHAPES)
@pytest.mark.parametrize("rows", [1, 2, 5, 64, 100, 192])
def test_prefill(config: DeltaConfig, rows: int) -> None:
    rng = np.random.default_rng(rows)
    state, h = weights(config, rng), rng.normal(size=(rows, WIDTH)).astype(np.float32)
    found, columns, memory = OrtExecutor(graph(config, state, rows)).run({"h": h}).values()
    expected, last = recurrence(config, state, h)
    np.testing.assert_allclose(found, expected, atol=2e-5)
    np.testing.assert_allclose(memory[0], last, atol=2e-5)
    assert columns.shape == (1, config.mixed_width, config.kernel - 1)


@pytest.mark.parametrize("config", SHAPES)
def test_decode_goes_on_where_prefill_stopped(config: DeltaConfig) -> None:
    rng = np.random.default_rng(1)
    state, h = weights(config, rng), rng.normal(size=(13, WIDTH)).astype(np.float32)
    expected, last = recurrence(config, state, h)
    _, columns, memory = OrtExecutor(graph(config, state, 9)).run({"h": h[:9]}).values()
    decode = OrtExecutor(graph(config, state, None))
    for t in range(9, 13):
        found, columns, memory = decode.run(
            {"h": h[t : t + 1], "past_conv_0": columns, "past_state_0": memory}
        ).values()
        np.testing.assert_allclose(found[0], expected[t], atol=2e-5)
    np.testing.assert_allclose(memory[0], last, atol=2e-5)


def test_padding_rows_that_are_zero_change_nothing() -> None:
    config, rng = SHAPES[0], np.random.default_rng(2)
    state, h = weights(config, rng), rng.normal(size=(40, WIDTH)).astype(np.float32)
    padded = np.concatenate([np.zeros((88, WIDTH), np.float32), h])
    alone = OrtExecutor(graph(config, state, 40)).run({"h": h})
    behind = OrtExecutor(graph(config, state, 128)).run({"h": padded})
    for name, expected in alone.items():
        found = behind[name][88:] if name not in ("present_conv_0", "present_state_0") else behind[name]
        np.testing.assert_allclose(found, expected, atol=1e-5)
    first = next(iter(behind.values()))
    assert not first[:88].any()


def test_equal_tokens_that_are_never_forgotten() -> None:
    """All keys are the same and β is near 1: the powers of the triangular system overflow, its inverse is harmless."""
    config, rng = SHAPES[0], np.random.default_rng(3)
    state, token = weights(config, rng), rng.normal(size=(1, WIDTH)).astype(np.float32)
    state["in_proj_b.weight"] = np.repeat(8 * token / (token**2).sum(), config.value_heads, axis=0)  # β = sigmoid(8)
    state["A_log"][:] = -20
    h = np.repeat(token, 128, axis=0)
    found, _, memory = OrtExecutor(graph(config, state, 128)).run({"h": h}).values()
    expected, last = recurrence(config, state, h)
    np.testing.assert_allclose(found, expected, atol=2e-5)
    np.testing.assert_allclose(memory[0], last, atol=2e-5)


def test_softplus() -> None:
    g = GraphBuilder("softplus")
    x = np.concatenate([np.linspace(-30, 30, 4001), [-1e4, 1e4]]).astype(np.float32)
    g.output(softplus(g, g.input("x", x.shape), "x"))
    found = next(iter(OrtExecutor(g.finish()).run({"x": x}).values()))
    np.testing.assert_allclose(found, np.logaddexp(0, x.astype(np.float64)), rtol=5e-7, atol=1e-13)
