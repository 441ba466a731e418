"""Arenas against brute force, plans against sums by hand."""

from itertools import permutations

import numpy as np
import onnx_ir as ir
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from pocketport.profiles.arena import Buffer, arena_of, pack
from pocketport.profiles.measurement import ProvenanceKind
from pocketport.profiles.memory import memory_plan


def chain(size: int, name: str, extra: list | None = None) -> ir.Model:
    """x → Sin → Cos → Add(Sin's) → y, all of `size` floats, with 10 weights."""
    made = helper.make_graph(
        [
            helper.make_node("Sin", ["x"], ["a"]), helper.make_node("Cos", ["a"], ["b"]),
            helper.make_node("Add", ["a", "b"], ["c"]), helper.make_node("Tan", ["c"], ["y"]),
        ],
        name, [helper.make_tensor_value_info("x", TensorProto.FLOAT, [size]), *(extra or [])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [size])],
        [helper.make_tensor("w", TensorProto.FLOAT, [10], np.zeros(10).tolist())],
    )  # fmt: skip
    return ir.from_proto(helper.make_model(made, opset_imports=[helper.make_opsetid("", 21)]))


def test_liveness_by_hand() -> None:
    arena = arena_of(chain(8, "g"), float_bits=32)
    assert arena.live == (32, 64, 96, 32), "a; a b; a b c; c — y is an output"
    assert (arena.low, arena.high) == (96, 96)
    assert (arena.io_bytes, arena.cache_bytes) == (64, 0)


buffers = st.lists(
    st.builds(
        lambda size, first, length: Buffer(f"{size}", size, first, first + length),
        st.integers(1, 9), st.integers(0, 5), st.integers(0, 3),
    ),
    min_size=1, max_size=5,
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(buffers)
def test_packing_is_between_the_optimum_and_the_sum(items: list[Buffer]) -> None:
    live = max(sum(b.bytes for b in items if b.first <= t <= b.last) for t in range(9))
    assert live <= _best(items) <= pack(items) <= sum(b.bytes for b in items)
    assert pack(items) <= 2 * _best(items)


def _best(items: list[Buffer]) -> int:
    """Least arena over all orders of first-fit: the optimum for so few buffers."""
    best = sum(b.bytes for b in items)
    for order in permutations(items):
        placed: list[tuple[int, Buffer]] = []
        for buffer in order:
            taken = [(o, b) for o, b in placed if b.first <= buffer.last and buffer.first <= b.last]
            starts = [0, *(o + b.bytes for o, b in taken)]
            offset = min(s for s in starts if all(s + buffer.bytes <= o or o + b.bytes <= s for o, b in taken))
            placed.append((offset, buffer))
        best = min(best, max(o + b.bytes for o, b in placed))
    return best


def test_quantized_pairs_and_views_share_a_buffer() -> None:
    made = helper.make_graph(
        [
            helper.make_node("Sin", ["x"], ["a"]), helper.make_node("QuantizeLinear", ["a", "s", "z"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]), helper.make_node("Reshape", ["d", "n"], ["r"]),
            helper.make_node("Relu", ["r"], ["e"]), helper.make_node("Cos", ["e"], ["y"]),
        ],
        "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [8])],
        [
            helper.make_tensor("s", TensorProto.FLOAT, [], [0.1]), helper.make_tensor("z", TensorProto.UINT8, [], [3]),
            helper.make_tensor("n", TensorProto.INT64, [1], [8]),
        ],
    )  # fmt: skip
    arena = arena_of(ir.from_proto(helper.make_model(made, opset_imports=[helper.make_opsetid("", 21)])), float_bits=32)
    assert arena.high == 32, "one buffer; its widest member is the float one after Relu"


def test_sequential_loading_and_cache() -> None:
    cache = [helper.make_tensor_value_info("past_key_0", TensorProto.FLOAT, [100])]
    parts = {"vision": chain(50, "v"), "prefill": chain(20, "p"), "decode": chain(1, "d", cache)}
    plan = memory_plan(parts, float_bits=32)
    assert [s.name for s in plan.steps] == [
        "load vision",
        "encode",
        "release",
        "load prefill, decode",
        "prefill",
        "decode",
    ]
    assert [s.phase for s in plan.steps] == ["vision"] * 3 + ["language"] * 3
    vision = 40 + 3 * 200 + 2 * 200
    language = 2 * 40 + 400 + (3 + 2) * 80 + (3 + 2) * 4
    assert plan.peak().value == max(vision, language)
    assert plan.peak().provenance.kind is ProvenanceKind.PREDICTED
    everything = memory_plan(parts, float_bits=32, sequential=False, overhead_bytes=7)
    assert everything.peak().value == vision + language + 7
    assert everything.peak().low == 3 * 40 + 400 + 3 * 200 + 2 * 200 + 7
    assert "runtime" in plan.peak().provenance.detail


def test_single_component() -> None:
    plan = memory_plan({"main": chain(8, "g")}, float_bits=32)
    assert [s.name for s in plan.steps] == ["load main", "run"]
    assert plan.peak().value == 40 + 96 + 64
