"""Where graphs are cut: no residual block is divided, every node is run once, on what is there."""

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest
from small_models import block, cnn

from pocketport.compress.builder import GraphBuilder
from pocketport.compress.reconstruction.segments import Segment, block_segments, layer_segments
from pocketport.compress.structure import is_constant, is_product_of_rows

Cut = Callable[[ir.Model, list[ir.Node]], list[Segment]]


def layers_of(graph: ir.Model) -> list[ir.Node]:
    return [node for node in graph.graph if is_product_of_rows(node)]


def conv(g: GraphBuilder, x: ir.Value, name: str) -> ir.Value:
    return g.node("Conv", [x, g.weight(f"{name}.weight", np.ones((2, 2, 1, 1), np.float32))], name)


def residual(blocks: int, *, pyramid: bool = False) -> ir.Model:
    """Blocks of two convolutions with a shortcut; of a pyramid, the first one's output is added again at the end."""
    g = GraphBuilder("main")
    x = first = g.input("pixels", (1, 2, 4, 4))
    for i in range(blocks):
        y = g.node("Relu", [conv(g, x, f"{i}.first")], f"{i}.relu")
        x = g.node("Add", [conv(g, y, f"{i}.second"), x], f"{i}.sum")
        first = x if i == 0 else first
    g.output(g.node("Add", [x, first], "neck") if pyramid else conv(g, x, "head"))
    return g.finish()


@pytest.mark.parametrize("cut", [layer_segments, block_segments])
@pytest.mark.parametrize("graph", [block(), cnn(np.random.default_rng(0)), residual(6), residual(6, pyramid=True)])
def test_every_node_is_run_once_on_what_earlier_segments_give(cut: Cut, graph: ir.Model) -> None:
    found = cut(graph, layers_of(graph))
    assert [n for s in found for n in s.nodes] == list(graph.graph)
    assert [n for s in found for n in s.layers] == layers_of(graph)
    there = {v.name for v in graph.graph.inputs}
    for i, segment in enumerate(found):
        assert set(segment.reads) <= there
        there |= set(segment.gives)
        there -= segment.last
        later = {
            v.name for s in found[i + 1 :] for n in s.nodes for v in n.inputs if v is not None and not is_constant(v)
        }
        assert not segment.last & later
    assert not there


def test_a_layer_has_its_activation_function_and_nothing_else() -> None:
    found = layer_segments(graph := residual(2), layers_of(graph))
    assert [[n.name for n in s.nodes] for s in found if s.layers] == [
        ["0.first", "0.relu"], ["0.second"], ["1.first", "1.relu"], ["1.second"], ["head"],
    ]  # fmt: skip


@pytest.mark.parametrize("pyramid", [False, True])
def test_blocks_end_where_shortcuts_do(pyramid: bool) -> None:
    graph = residual(12, pyramid=pyramid)
    found = block_segments(graph, layers_of(graph))
    assert [s.nodes[-1].name for s in found] == [
        "3.sum",
        "7.sum",
        "neck" if pyramid else "11.sum",
        *(["head"] * (not pyramid)),
    ]
    assert max(len(s.layers) for s in found) == 8


def test_masks_and_positions_do_not_keep_a_transformer_together() -> None:
    graph = block()
    found = block_segments(graph, layers_of(graph))
    assert [[n.name for n in s.layers] for s in found] == [
        ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "lm_head"]
    ]
    many = block_segments(graph, [n for n in layers_of(graph) if n.name in ("gate_proj", "o_proj")])
    assert len(many) == 1
