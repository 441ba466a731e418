"""Online rotations: the inputs of down projections multiplied by Hadamard matrices while the model runs."""

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from pocketport.compress.conditioning.base import LINEAR_LAYERS, Observe, Rewrite
from pocketport.compress.conditioning.hadamard import hadamard_factors
from pocketport.compress.conditioning.labels import Blocked, Labels, constant_shape, known_shape
from pocketport.compress.conditioning.slots import Numbers, Slot
from pocketport.compress.conditioning.streams import Chain, Stream
from pocketport.compress.passes.rewriting import NodeWriter
from pocketport.compress.structure import is_constant, is_product_of_rows, weight_operand

ACTIVATION_FUNCTIONS = frozenset({"Clip", "Elu", "Gelu", "HardSwish", "LeakyRelu", "Relu"})


class RotateOnline(Rewrite):
    """x·Wᵀ → (x·Q)·(W·Q)ᵀ for linear layers behind a gate or an activation function, where no rotation can be folded.

    Q = A⊗B, of two Hadamard matrices over the roots of their sizes a and b, as nearly alike as there are for the width
    K = a·b: of every row of x [M, K], as a matrix X [a, b], Aᵀ·X·B is computed, in M·K·(a + b) multiplications (QuaRot,
    Ashkboos et al. 2024, arXiv 2404.00456, section 4, stage 1b, up to the order of channels). Where the layer's input
    is rounded behind that, outliers are spread over all channels; `planning.rotations` refuses it elsewhere.
    """

    def __call__(self, chain: Chain, observe: Observe) -> tuple[list[Stream], dict[str, str]]:
        """See `Rewrite`; nothing is observed."""
        blocked: dict[str, str] = {}
        turned: dict[tuple[str, ...], Stream] = {}
        for component, graph in chain.graphs.items():
            inserter = _Inserter(graph.graph)
            for x in list(_behind_functions(graph)):
                try:
                    layers, (a, b) = _layers(x), _factors(x)
                except Blocked as reason:
                    blocked[f"{component}/{x.name}"] = str(reason)
                    continue
                slots = [Slot(component, node, 1, _channels(node)) for node in layers]
                weights = tuple(slot.name for slot in slots)  # components that have them in common are turned alike
                stream = turned.setdefault(weights, Stream(f"{component}/{x.name}", known_shape(x)[-1]))
                stream.readers.extend(slots)
                inserter.rotate(x, layers, a, b)
                for slot in slots:
                    slot.rotate(b, a)
        return list(turned.values()), blocked


class _Inserter:
    """Puts rotations into one graph; those of one width have their matrices in common."""

    def __init__(self, graph: ir.Graph) -> None:
        self._writer = NodeWriter(graph)
        self._matrices: dict[str, ir.Value] = {}

    def rotate(self, x: ir.Value, layers: list[ir.Node], a: Numbers, b: Numbers) -> None:
        """Give the layers x·(A⊗B) for x."""
        shape, name = known_shape(x), f"{x.name}.hadamard"
        first = next(node for node in self._writer.graph if node in layers)
        blocks = (*shape[:-1], len(a), len(b))

        def product(left: ir.Value, right: ir.Value, path: str) -> ir.Value:
            made = self._writer.insert(first, "MatMul", [left, right], path, x.dtype)
            made.shape = ir.Shape(blocks)
            return made

        turned = self._writer.reshape(first, x, blocks, f"{name}.blocks")
        turned = product(turned, self._matrix(f"hadamard.{len(b)}", b, x), f"{name}.within")
        turned = product(self._matrix(f"hadamard.{len(a)}.transposed", a.T, x), turned, f"{name}.between")
        turned = self._writer.reshape(first, turned, shape, name)
        for layer in layers:
            layer.replace_input_with(0, turned)

    def _matrix(self, name: str, numbers: Numbers, like: ir.Value) -> ir.Value:
        if name not in self._matrices:
            dtype = np.float32 if like.dtype is None else like.dtype.numpy()
            self._matrices[name] = self._writer.constant(name, np.ascontiguousarray(numbers, dtype))
        return self._matrices[name]


def _behind_functions(graph: ir.Model) -> Iterator[ir.Value]:
    """What activation functions and products of two activations hand to linear layers."""
    for node in graph.graph:
        gate = node.op_type == "Mul" and not any(v is None or is_constant(v) for v in node.inputs)
        if gate or node.op_type in ACTIVATION_FUNCTIONS:
            x = node.outputs[0]
            if any(reader.op_type in LINEAR_LAYERS and weight_operand(reader) for reader, _ in x.uses()):
                yield x


def _layers(x: ir.Value) -> list[ir.Node]:
    """The linear layers that read `x`; Blocked where others do, too."""
    readers = [node for node, _ in x.uses()]
    if x.is_graph_output():
        raise Blocked(f"{x.name} is an output")
    for node in readers:
        if node.op_type not in LINEAR_LAYERS or not is_product_of_rows(node):
            raise Blocked(f"not only linear layers read {x.name}")
    return readers


def _factors(x: ir.Value) -> tuple[Numbers, Numbers]:
    """A and B, orthogonal; Blocked where none are known."""
    width = known_shape(x)[-1]
    factors = hadamard_factors(width)
    if factors is None:
        raise Blocked(f"no two Hadamard matrices are known for the {width} channels of {x.name}")
    a, b = factors
    return a / np.sqrt(len(a)), b / np.sqrt(len(b))


def _channels(node: ir.Node) -> Labels:
    """Labels of the input channels of a layer's weight."""
    operand = weight_operand(node)
    assert operand is not None and operand.input_axis is not None
    width = constant_shape(operand.value)[operand.input_axis]
    return np.arange(width, dtype=np.int32).reshape([width if i == operand.input_axis else 1 for i in range(2)])
