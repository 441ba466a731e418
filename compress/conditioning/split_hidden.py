"""MLPs cut into parts: their hidden channels sorted by importance, so that each part can have a scheme of its own."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from pocketport.compress.conditioning.base import (
    LINEAR_LAYERS,
    Observe,
    Rewrite,
    in_order,
    inputs_of,
    linear_inputs,
    mean_input,
    watched,
)
from pocketport.compress.conditioning.labels import constant_shape, known_shape
from pocketport.compress.conditioning.search import ELEMENTWISE, streams_from
from pocketport.compress.conditioning.slots import Numbers, Slot
from pocketport.compress.conditioning.streams import Chain, Change, Stream
from pocketport.compress.passes.rewriting import NodeWriter
from pocketport.errors import UsageError

JOINING = frozenset({"Add", "Sub", "Mul", "Div"})


class SplitHidden(Rewrite):
    """y = W₂·f(W₁·x) → Σₚ W₂[:, p]·f(W₁[p]·x), over parts p of the hidden channels, the most important ones last.

    What an MLP loses to rounding is spread unevenly over its hidden channels: few carry most of what it says. In parts, which
    are layers of their own, a search gives each its bits. Rows of W₁ and columns of W₂ are neither lost nor moved while the
    model runs: a part is a matrix like any other, and no target needs a kernel that mixes widths. (Atom, Zhao et al. 2023,
    arXiv 2310.19102, section 4.1, gives channels of one layer two widths, and computes them in a kernel made for that.)

    Parts are called as their layer is, and ``.0``, ``.1``, …

    Args:
        parts: of equal width.
        by: what channels are sorted by: ``activations``, the mean of what channel k adds to the output, mean(hₖ²)·‖W₂[:, k]‖²;
            or ``gradients``, how much the answers about images depend on it: the product of Σ g² over the layers that write
            it (gate and up), which says more, and takes a pass backwards through the whole model.
    """

    def __init__(self, parts: float = 2, by: str = "activations") -> None:
        if parts != int(parts) or parts < 2:
            raise UsageError(f"parts is {parts}", where="recipe, split_hidden", fix="give a whole number from 2 on")
        if by not in KEYS:
            raise UsageError(f"by is {by!r}", where="recipe, split_hidden", fix=f"choose {' or '.join(KEYS)}")
        self._parts, self._key = int(parts), KEYS[by]

    def __call__(self, chain: Chain, observe: Observe) -> tuple[list[Stream], dict[str, str]]:
        """See `Rewrite`."""
        starts = ((component, x) for component, x in linear_inputs(chain) if x.producer() is not None)
        found, blocked = streams_from(chain, starts, Change.PERMUTE)
        streams: list[Stream] = []
        split: set[ir.Node] = set()
        for stream in found:
            layers = {slot.node for slot in (*stream.writers, *stream.readers)}
            taken = f"a layer of {stream.name} is split already" if layers & split else None
            reason = taken or _obstacle(chain, stream, self._parts)
            if reason is not None:
                blocked[stream.name] = reason
                continue
            streams.append(stream)
            split |= layers
        keys = self._key(streams, observe) if streams else []
        graphs = {component: NodeWriter(graph.graph) for component, graph in chain.graphs.items()}
        for stream, key in zip(streams, keys, strict=True):
            order = np.argsort(key, kind="stable")
            for slot in (*stream.writers, *stream.readers):
                slot.permute(order)
            for component, writer in graphs.items():
                _Splitter(writer, component, stream, self._parts).split()
        for graph in chain.graphs.values():
            RemoveUnusedNodesPass()(graph)
        return streams, blocked


def _obstacle(chain: Chain, stream: Stream, parts: int) -> str | None:
    """Why the stream's channels are not what linear layers, and ops that know no axis, hand to linear layers."""
    if stream.width % parts:
        return f"{parts} equal parts of the {stream.width} channels of {stream.name} there are not"
    if not stream.readers or len(stream.linear_readers) < len(stream.readers):
        return f"not only linear layers read {stream.name}"
    if not any(_layers(stream.writers)):
        return f"no linear layer writes {stream.name}"
    for value in stream.tensors:
        producer = value.producer()
        if producer is None or value.is_graph_output() or producer.op_type not in LINEAR_LAYERS | ELEMENTWISE | JOINING:
            return f"{value.name} is more than a hidden channel of an MLP"
    for slot in (*stream.writers, *stream.readers):
        constants = chain.graphs[slot.component].graph.initializers
        if any(f"{slot.name}.{p}" in constants for p in range(parts)):
            return f"{slot.component} has constants already that are called as parts of {slot.name} would be"
    if not in_order(stream):
        return f"the channels of {stream.name} are repeated"
    return None


def _by_activations(streams: Sequence[Stream], observe: Observe) -> list[Numbers]:
    seen = observe(watched(streams))
    return [mean_input(s, inputs_of(s, seen), square=True) * _weighed(s) for s in streams]


def _weighed(stream: Stream) -> Numbers:
    """‖W₂[:, k]‖² of each channel, summed over the weights that read it, each once, [width]."""
    total = np.zeros(stream.width)
    for slot in {s.name: s for s in stream.readers}.values():
        array = np.moveaxis(slot.array(), slot.axis, 0)
        total += np.square(array).sum(axis=tuple(range(1, array.ndim)))
    return total


def _by_gradients(streams: Sequence[Stream], observe: Observe) -> list[Numbers]:
    """Logarithms of the product: what rounding a row of W₁ does grows with the row's Σ g²."""
    nodes: dict[str, set[str]] = {}
    for stream in streams:
        for slot in _layers(stream.writers):
            nodes.setdefault(slot.component, set()).add(slot.node.name or "")
    squares = observe.gradients(nodes)
    keys = []
    for stream in streams:
        seen = [
            found for s in _layers(stream.writers) if (found := squares.get(f"{s.component}/{s.node.name}")) is not None
        ]
        if not seen:
            raise UsageError(
                f"no answer depends on {stream.name}", where="recipe, split_hidden",
                fix="name the components that answers go through, or sort by activations",
            )  # fmt: skip
        keys.append(np.log(np.maximum(np.stack(seen), np.finfo(np.float64).tiny)).sum(0))
    return keys


def _layers(slots: Iterable[Slot]) -> Iterator[Slot]:
    """Weights of linear layers among them."""
    return (slot for slot in slots if slot.index == 1 and slot.node.op_type in LINEAR_LAYERS)


KEYS = {"activations": _by_activations, "gradients": _by_gradients}


@dataclass
class _Splitter:
    """Puts the parts of one stream into one graph in the place of the whole."""

    writer: NodeWriter
    component: str
    stream: Stream
    parts: int

    def split(self) -> None:
        """In the graph's order, so that what a node reads has its parts before it; what is replaced stays, unused."""
        writers, readers = (
            {(s.node, s.index): s for s in slots if s.component == self.component}
            for slots in (self.stream.writers, self.stream.readers)
        )
        slots, reading = writers | readers, {node for node, _ in readers}
        whole: dict[ir.Value, list[ir.Value]] = {}
        for node in list(self.writer.graph):
            if node in reading or any(value in self.stream.tensors for value in node.outputs):
                made = [self._part(node, slots, whole, p) for p in range(self.parts)]
                if node in reading:
                    self.writer.replace(node, self._sum(node, made))
                else:
                    whole[node.outputs[0]] = made

    def _part(
        self, node: ir.Node, slots: Mapping[tuple[ir.Node, int], Slot], whole: Mapping[ir.Value, list[ir.Value]], p: int
    ) -> ir.Value:
        """What the node computes of one part; the first part of a layer behind the hidden channels has its bias."""
        inputs: list[ir.Value | None] = []
        for i, value in enumerate(node.inputs):
            if value is not None and value in whole:
                inputs.append(whole[value][p])
            elif (node, i) in slots:
                inputs.append(self._constant(slots[node, i], p))
            else:
                adds_bias = i == 2 and p > 0 and node.inputs[0] in whole
                inputs.append(None if adds_bias else value)
        output = node.outputs[0]
        made = self.writer.insert(node, node.op_type, inputs, f"{node.name}.{p}", output.dtype, node.attributes)
        width = self.stream.width // self.parts
        shape = known_shape(output)
        made.shape = ir.Shape((*shape[:-1], width) if output in self.stream.tensors else shape)
        return made

    def _sum(self, node: ir.Node, made: Sequence[ir.Value]) -> ir.Value:
        total = made[0]
        for part in made[1:]:
            total = self.writer.insert(node, "Add", [total, part], f"{node.name}.sum", total.dtype)
            total.shape = made[0].shape
        return total

    def _constant(self, slot: Slot, p: int) -> ir.Value:
        """A part of a constant, read when it is asked for; components that have the whole in common have it too."""
        name = f"{slot.name}.{p}"
        graph = self.writer.graph
        if name in graph.initializers:
            return graph.initializers[name]
        tensor = ir.convenience.get_const_tensor(slot.value)
        assert tensor is not None
        width = self.stream.width // self.parts
        shape = list(constant_shape(slot.value))
        shape[slot.axis] = width

        def compute() -> ir.TensorProtocol:
            part = np.take(tensor.numpy(), range(p * width, (p + 1) * width), axis=slot.axis)
            return ir.Tensor(np.ascontiguousarray(part), dtype=tensor.dtype)

        value = ir.Value(
            name=name, shape=ir.Shape(shape), type=ir.TensorType(tensor.dtype),
            const_value=ir.LazyTensor(compute, dtype=tensor.dtype, shape=ir.Shape(shape), name=name),
        )  # fmt: skip
        graph.register_initializer(value)
        return value
