"""A pivot whose weights are floats again: the same numbers, for runs that are many."""

import numpy as np
import onnx_ir as ir

from pocketport.calibration.sessions import open_session
from pocketport.compress.graph import clone_graph, shape_of
from pocketport.compress.passes.rewriting import add_initializer
from pocketport.compress.structure import is_constant


def with_float_weights(pivot: ir.Model) -> ir.Model:
    """A copy in which what depends on constants alone is computed, once, by onnxruntime.

    It computes weights anew from integers and palettes in every run of a graph that it may not rewrite, which is most of
    the time of a graph of few rows.
    """
    copy = clone_graph(pivot)
    known: list[ir.Node] = []
    values: set[str] = set()
    for node in copy.graph:
        inputs = [v for v in node.inputs if v is not None]
        if inputs and all(is_constant(v) or v.name in values for v in inputs):
            known.append(node)
            values |= {v.name or "" for v in node.outputs}
    read = [
        v
        for node in known
        for v in node.outputs
        if not v.is_graph_output() and any(user.outputs[0].name not in values for user, _ in v.uses())
    ]
    if not read:
        return copy
    names = [v.name or "" for v in read]
    unread = {v.name or "": np.zeros(shape_of(v), (v.dtype or ir.DataType.FLOAT).numpy()) for v in copy.graph.inputs}
    arrays = open_session(copy, names).run(names, unread)
    for value, array in zip(read, arrays, strict=True):
        name, value.name = value.name or "", f"{value.name}.unused"
        value.replace_all_uses_with(add_initializer(copy.graph, name, array))
    kept = {v.name for v in copy.graph.outputs}
    for node in reversed(known):
        if not any(v.name in kept or list(v.uses()) for v in node.outputs):
            copy.graph.remove(node, safe=True)
    return copy
