"""Linear layers whose outputs are added up: what rounding does to one of them the others can make up for."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import onnx_ir as ir

from pocketport.compress.graph import static_shape
from pocketport.compress.planning.plan import TensorKind, TensorPlan
from pocketport.compress.structure import is_product_of_rows, weight_operand


def rounded_together(graph: ir.Model, constants: Sequence[TensorPlan]) -> list[TensorPlan]:
    """The plans of a graph's constants, those of weights with their `terms`, where one of a sum is rounded by gptq.

    Weights that are rounded on samples, which show what others did, and those with a correction stay out of it.
    """
    weights = {
        t.tensor: t for t in constants if t.kind is TensorKind.WEIGHT and t.quantized and not t.on_samples and not t.rank
    }  # fmt: skip
    terms: dict[str, tuple[str, ...]] = {}
    for layers in summed_layers(graph):
        names = [layer.inputs[1].name or "" for layer in layers if layer.inputs[1] is not None]
        own = [weights[name] for name in names if name in weights]
        if len(own) > 1 and any(t.algorithm == "gptq" for t in own):
            terms |= dict.fromkeys((t.tensor for t in own), tuple(t.activation for t in own))
    why = "rounded together with the layers that are added to it"
    return [replace(t, terms=terms[t.tensor], why=f"{t.why}; {why}") if t.tensor in terms else t for t in constants]


def summed_layers(graph: ir.Model) -> list[tuple[ir.Node, ...]]:
    """The layers of each sum of at least two, in the order of the graph; each reads an input and a weight of its own.

    Whatever else is added up with them, the residual stream for instance, changes nothing.
    """
    order = {node: place for place, node in enumerate(graph.graph)}
    found = []
    for node in graph.graph:
        if node.op_type != "Add" or _goes_into_a_sum(node):
            continue
        layers = sorted(_terms(node), key=order.__getitem__)
        inputs = {layer.inputs[0] for layer in layers}
        if len(inputs) == len(layers) > 1 and len({_rows(layer) for layer in layers}) == 1:
            found.append(tuple(layers))
    return found


def _goes_into_a_sum(node: ir.Node) -> bool:
    output = node.outputs[0]
    uses = list(output.uses())
    return len(uses) == 1 and not output.is_graph_output() and uses[0].node.op_type == "Add"


def _terms(add: ir.Node) -> Iterator[ir.Node]:
    """Layers that are read by nothing but this sum."""
    for value in add.inputs:
        node = None if value is None else value.producer()
        if node is None or not _goes_into_a_sum(node):
            continue
        if node.op_type == "Add":
            yield from _terms(node)
        elif _is_linear(node) and static_shape(node.outputs[0]) == static_shape(add.outputs[0]):
            yield node


def _is_linear(node: ir.Node) -> bool:
    """Whether it is a linear layer with a weight of its own."""
    operand = weight_operand(node)
    return (
        operand is not None and operand.kind == "linear" and is_product_of_rows(node) and len(operand.value.uses()) == 1
    )


def _rows(layer: ir.Node) -> tuple[int, ...] | None:
    """The shape of a layer's input but for its columns."""
    shape = None if layer.inputs[0] is None else static_shape(layer.inputs[0])
    return None if shape is None else shape[:-1]
