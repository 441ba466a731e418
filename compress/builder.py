"""GraphBuilder: write an ONNX graph node by node, with names that say where in the model each one belongs."""

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import onnx_ir as ir
from numpy.typing import ArrayLike, NDArray

from pocketport.compress.graph import dimensions, inferred

OPSET = 23  # RMSNormalization is an op since 23
IR_VERSION = 11

Weight: TypeAlias = ir.TensorProtocol | NDArray[np.generic]


class GraphBuilder:
    """Collects the inputs, weights, nodes and outputs of one graph; `finish` gives the model.

    A node's name is its path in the model (``llm.model.layers.0.self_attn.q_proj``), and its (first) output
    carries the same name unless told otherwise. The same weight name always means the same initializer.
    """

    def __init__(self, name: str) -> None:
        self._graph = ir.Graph([], [], nodes=[], opset_imports={"": OPSET}, name=name)

    def input(self, name: str, shape: Sequence[int | str], dtype: ir.DataType = ir.DataType.FLOAT) -> ir.Value:
        """Declare a graph input; dimensions by name are open."""
        value = ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype))
        self._graph.inputs.append(value)
        return value

    def weight(self, name: str, data: Weight) -> ir.Value:
        """An initializer. A lazy or external tensor stays one: nothing is read before the graph is used."""
        known = self._graph.initializers.get(name)
        if known is not None:
            return known
        tensor = ir.Tensor(data, name=name) if isinstance(data, np.ndarray) else data
        value = ir.Value(
            name=name, shape=ir.Shape(dimensions(tensor)), type=ir.TensorType(tensor.dtype), const_value=tensor
        )
        self._graph.register_initializer(value)
        return value

    def integers(self, values: ArrayLike) -> ir.Value:
        """An int64 constant (a shape, axes, slice bounds), shared by all that need the same numbers."""
        array = np.asarray(values, np.int64)
        return self.weight("int64_" + ("x".join(map(str, array.ravel().tolist())) or "empty"), array)

    def node(
        self,
        op: str,
        inputs: Sequence[ir.Value | None],
        name: str,
        *,
        output: str | None = None,
        domain: str = "",
        **attributes: object,
    ) -> ir.Value:
        """Append a node with one output, named `output` or else like the node; version 1 of any further domain."""
        return self.split_node(op, inputs, name, [output or name], domain=domain, **attributes)[0]

    def split_node(
        self,
        op: str,
        inputs: Sequence[ir.Value | None],
        name: str,
        outputs: Sequence[str],
        *,
        domain: str = "",
        **attributes: object,
    ) -> tuple[ir.Value, ...]:
        """Append a node with several outputs of these names; "" for one that is not wanted."""
        if domain:
            self._graph.opset_imports.setdefault(domain, 1)
        node = ir.node(op, inputs, attributes, num_outputs=len(outputs), name=name, domain=domain)
        for value, output in zip(node.outputs, outputs, strict=True):
            value.name = output
        self._graph.append(node)
        return tuple(node.outputs)

    def reshape(self, x: ir.Value, shape: Sequence[int], name: str, *, output: str | None = None) -> ir.Value:
        """Append a Reshape to a static shape."""
        return self.node("Reshape", [x, self.integers(shape)], name, output=output)

    def transpose(self, x: ir.Value, perm: Sequence[int], name: str) -> ir.Value:
        """Append a Transpose."""
        return self.node("Transpose", [x], name, perm=list(perm))

    def output(self, value: ir.Value, *, first: bool = False) -> None:
        """Make `value` a graph output: the last one so far, or the first."""
        self._graph.outputs.insert(0 if first else len(self._graph.outputs), value)

    def finish(self) -> ir.Model:
        """The model, with the shape and dtype of every value filled in."""
        model = ir.Model(self._graph, ir_version=IR_VERSION, producer_name="pocketport")
        return inferred(model)
