import onnx_ir as ir
import pytest
from small_models import block_bundle

from pocketport.compress.passes.base import Pass, PassResult, run_passes
from pocketport.errors import InputError, VerificationError


class Rename(Pass):
    """Renames one node at a time."""

    def rewrite(self, graph: ir.Model) -> PassResult:
        node = next((n for n in graph.graph if not (n.name or "").startswith("new.")), None)
        if node is not None:
            node.name = f"new.{node.name}"
        return PassResult(graph, node is not None)


class DropOutput(Pass):
    def rewrite(self, graph: ir.Model) -> PassResult:
        graph.graph.outputs.pop()
        return PassResult(graph, True)


class Broken(Pass):
    def rewrite(self, graph: ir.Model) -> PassResult:
        raise IndexError("off by one")


class Picky(Rename):
    def requires(self, graph: ir.Model) -> None:
        raise InputError("it is too old", where="the graph", fix="raise its opset")


def graph() -> ir.Model:
    return block_bundle()[0]["main"].graph


def test_rounds_end_when_nothing_changes() -> None:
    model = graph()
    count = sum(1 for _ in model.graph)
    assert run_passes(model, [Rename()], rounds=3).modified
    assert sum((n.name or "").startswith("new.") for n in model.graph) == 3
    run_passes(model, [Rename()], rounds=count * 2)
    assert not run_passes(model, [Rename()]).modified


def test_the_interface_must_survive() -> None:
    with pytest.raises(VerificationError, match="changed the graph's inputs or outputs"):
        run_passes(graph(), [DropOutput()])


def test_failures_name_the_pass() -> None:
    with pytest.raises(VerificationError) as caught:
        run_passes(graph(), [Broken()])
    assert caught.value.where == "pass Broken" and "IndexError" in caught.value.why
    with pytest.raises(InputError, match="too old"):
        run_passes(graph(), [Picky()])
