"""Arenas by the engines' rules, against what the engines themselves made (``benchmarks/arena_check.py``)."""

import sys
from pathlib import Path

import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocketport.profiles.arena import Buffer, arena_of
from pocketport.profiles.engine_arenas import Step, litert_arena, onnxruntime_arena, openvino_arena, pack_in_order

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from arena_check import litert, openvino_planned
from arenas.graphs import GRAPHS

# Graph → bytes of the block that onnxruntime 1.32 made.
ONNXRUNTIME = {
    "chain 16×4": 131072, "residual 24×4": 294912, "inverted 8×2": 491520, "dense 16×8": 1343488, "inception 24": 589824,
    "unet 8×3": 884736, "pyramid 16": 254976, "transformer 64×2, 64 rows": 245760, "transformer 128×2, 32 rows": 180224,
    "transformer 64×3, 256 rows": 1769472, "perceptron 512×5": 65536,
}  # fmt: skip
# Graph → bytes of the block that OpenVINO 2026.4 made.
OPENVINO = {"residual 16×2": 131072, "dense 8×4": 327680, "unet 8×2": 786432}


@pytest.mark.parametrize("name", ONNXRUNTIME)
def test_onnxruntimes_block_to_the_byte(name: str) -> None:
    assert onnxruntime_arena(GRAPHS[name](0)) == ONNXRUNTIME[name]


@pytest.mark.parametrize("name", ["residual 16×2", "inception 8", "pyramid 16", "transformer 64×2, 64 rows"])
def test_litert_to_the_byte(name: str) -> None:
    actual, planned = litert(GRAPHS[name](0))
    assert planned == actual


@pytest.mark.parametrize("name", OPENVINO)
def test_openvino_to_the_byte(name: str) -> None:
    import openvino as ov

    settings = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    core = ov.Core()
    model = core.compile_model(core.read_model(ir.to_proto(GRAPHS[name](0)).SerializeToString()), "CPU", settings)
    assert openvino_planned(model) == OPENVINO[name]


@pytest.mark.parametrize("name", GRAPHS)
def test_every_graph_takes_at_least_what_lives_together(name: str) -> None:
    graph = GRAPHS[name](0)
    arena = arena_of(graph, float_bits=32)
    assert arena.low <= arena.high <= 1.2 * arena.low, "greedy packing is near the optimum"
    assert onnxruntime_arena(graph) <= 2 * arena.high


buffers = st.lists(
    st.builds(
        lambda size, first, length: Buffer(f"{size}", size, first, first + length),
        st.integers(1, 9), st.integers(0, 5), st.integers(0, 3),
    ),
    min_size=1, max_size=8,
)  # fmt: skip


@given(buffers)
def test_packing_in_order_is_between_what_lives_together_and_the_sum(items: list[Buffer]) -> None:
    live = max(sum(b.bytes for b in items if b.first <= t <= b.last) for t in range(9))
    assert live <= pack_in_order(items) <= sum(b.bytes for b in items)


def test_packing_in_order_takes_the_tightest_gap() -> None:
    held = [Buffer("a", 4, 0, 0), Buffer("b", 1, 0, 9), Buffer("c", 2, 0, 0), Buffer("d", 1, 0, 9)]
    assert pack_in_order([*held, Buffer("e", 2, 1, 2), Buffer("f", 4, 1, 2)]) == 8, "e where c was, f where a was"
    assert pack_in_order([*held, Buffer("e", 3, 1, 2), Buffer("f", 3, 1, 2)]) == 11, "no second gap for f"


def test_litert_by_hand() -> None:
    steps = [
        Step("CONV_2D", (0,), (1,)),
        Step("CONV_2D", (1,), (2,)),
        Step("ADD", (1, 2), (3,)),
        Step("CONV_2D", (3,), (4,)),
    ]
    sizes = dict.fromkeys(range(5), 64)
    # the input throughout; 1 and 2 at once, 3 in the place of 1 or 2, the output where the other was
    assert litert_arena(steps, sizes, {0}, {4}) == 3 * 64
    assert litert_arena(steps, {**sizes, 0: 1}, {0}, {4}) == 3 * 64, "on 64 bytes"


def test_openvino_by_hand() -> None:
    steps = [
        Step("Input", (), (0,)), Step("Const", (), (9,)), Step("Convolution", (0, 9), (1,)), Step("Convolution", (1, 9), (2,)),
        Step("Convolution", (2, 9, 1), (3,)), Step("Reshape", (3, 9), (4,)), Step("Output", (4,), (5,)),
    ]  # fmt: skip
    sizes = {**dict.fromkeys(range(6), 640), 9: 64}
    assert openvino_arena(steps, sizes) == 2 * 640, "the sum lies where its other summand lay, and so does the view"
