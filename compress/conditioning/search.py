"""The search for a stream: op by op, forwards and backwards, until nothing new is reached.

Ops that would not pass the change on end it with `Blocked`.
"""

from collections.abc import Iterable

import numpy as np
import onnx_ir as ir

from pocketport.compress.conditioning.labels import (
    Blocked,
    Labels,
    along,
    compressed,
    constant_shape,
    fitted,
    known_shape,
    operand,
)
from pocketport.compress.conditioning.slots import Slot
from pocketport.compress.conditioning.streams import LINEAR, NORMS, Chain, Change, Stream
from pocketport.compress.graph import constant
from pocketport.compress.passes.rewriting import scalar
from pocketport.compress.structure import WeightOperand, activations_read, is_constant, weight_operand

MOVES = frozenset({"Identity", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten"})
POOLS = frozenset({"MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool"})
HOMOGENEOUS = POOLS | {"Relu", "LeakyRelu"}  # f(s·x) = s·f(x) for s > 0, channel by channel
ELEMENTWISE = HOMOGENEOUS | {"Sigmoid", "Gelu", "Tanh", "Erf", "HardSigmoid", "HardSwish", "Neg", "Abs", "Softplus"}


def stream_of(chain: Chain, component: str, value: ir.Value, change: Change) -> Stream:
    """The stream of a tensor's channels: its last axis, of a feature map [N, C, H, W] its axis 1.

    Raises:
        Blocked: an op, or the model's own interface, stands in the way.
    """
    shape = known_shape(value)
    producer = value.producer()
    axis = 1 if producer is not None and producer.op_type in ("Conv", "ConvTranspose") else len(shape) - 1
    labels = np.arange(shape[axis], dtype=np.int32)
    search = _Search(chain, change, Stream(f"{component}/{value.name}", shape[axis]))
    search.spread(component, value, labels.reshape([-1 if i == axis else 1 for i in range(len(shape))]))
    return search.run()


def streams_from(
    chain: Chain, starts: Iterable[tuple[str, ir.Value]], change: Change
) -> tuple[list[Stream], dict[str, str]]:
    """Every stream that begins at one of `starts` (component, tensor), each once, and what blocked the others."""
    found: list[Stream] = []
    blocked: dict[str, str] = {}
    seen: set[ir.Value] = set()
    for component, value in starts:
        if value in seen:
            continue
        try:
            stream = stream_of(chain, component, value, change)
        except Blocked as reason:
            blocked[f"{component}/{value.name}"] = str(reason)
            continue
        seen |= set(stream.tensors)
        found.append(stream)
    return found, blocked


class _Search:
    def __init__(self, chain: Chain, change: Change, stream: Stream) -> None:
        self._chain = chain
        self._change = change
        self._stream = stream
        self._queue: list[tuple[str, ir.Value]] = []
        self._passed: dict[ir.Node, int] = {}  # nodes dealt with, and the input that the stream came in by
        self._products: list[ir.Node] = []  # whose result is of the stream: one factor must be, too

    def run(self) -> Stream:
        """Until nothing new is reached."""
        while self._queue:
            component, value = self._queue.pop()
            labels = self._stream.tensors[value]
            if value.is_graph_input() or value.is_graph_output():
                self._cross(component, value, labels)
            producer = value.producer()
            if producer is not None and producer not in self._passed:
                self._write(component, producer, labels)
            for node, index in list(value.uses()):
                self._read(component, node, index, labels)
        for node in self._products:
            if node not in self._passed:
                raise Blocked(f"{node.name} multiplies two tensors")
        return self._stream

    def spread(self, component: str, value: ir.Value, labels: Labels) -> None:
        """Take a tensor into the stream."""
        labels = fitted(labels, value)
        if self._change is Change.PERMUTE and max(labels.shape) != labels.size:
            raise Blocked(f"{value.name} cuts the channels into groups")
        known = self._stream.tensors.get(value)
        if known is None:
            self._stream.tensors[value] = labels
            self._queue.append((component, value))
        elif not np.array_equal(known, labels):
            raise Blocked(f"{value.name} holds the channels in two orders")

    def _cross(self, component: str, value: ir.Value, labels: Labels) -> None:
        """Go on in the components that this one hands the tensor to, or has it from."""
        name = f"{component}/{value.name}"
        if name not in self._chain.links:
            raise Blocked(f"{name} is the model's own input or output")
        self._stream.crossings.add(name)
        for other in self._chain.links[name]:
            there, _, tensor = other.partition("/")
            if there not in self._chain.graphs:
                raise Blocked(f"{there} shares {value.name} but is not to be changed")
            graph = self._chain.graphs[there].graph
            self.spread(there, next(v for v in (*graph.inputs, *graph.outputs) if v.name == tensor), labels)

    # Where channels come from

    def _write(self, component: str, node: ir.Node, labels: Labels) -> None:
        if self._change is Change.SCALE and node.op_type in ("Mul", "Div") and len(activations_read(node)) == 2:
            self._products.append(node)
            return
        self._passed[node] = -1
        weight = weight_operand(node)
        if weight is not None and weight.kind != "table":
            self._written_by_weight(component, node, weight, labels)
        elif weight is not None:
            self._slot(self._stream.writers, component, node, 0, along(labels, -1, node)[None], node.outputs[0])
        elif node.op_type in NORMS:
            self._norm(component, node, labels)
        else:
            self._pass(component, node, -1, labels)

    def _written_by_weight(self, component: str, node: ir.Node, weight: WeightOperand, labels: Labels) -> None:
        convolution = node.op_type in ("Conv", "ConvTranspose")
        channels = along(labels, 1 if convolution else -1, node)
        rank = len(weight.value.shape or ())
        if node.op_type == "ConvTranspose":  # [C_in, C_out/groups, ...]
            shape = constant_shape(weight.value)
            groups = node.attributes.get_int("group", 1) or 1
            group = np.arange(shape[0]) // (shape[0] // groups)
            output = group[:, None] * shape[1] + np.arange(shape[1])
            spread = channels[output].reshape(*output.shape, *[1] * (rank - 2))
        else:
            spread = channels.reshape([-1 if i == weight.channel_axis else 1 for i in range(rank)])
        self._slot(self._stream.writers, component, node, 1, spread, node.outputs[0])
        if len(node.inputs) > 2 and node.inputs[2] is not None:
            if weight.bias is None:
                raise Blocked(f"the bias of {node.name} is computed")
            self._slot(self._stream.writers, component, node, 2, channels, None)

    def _norm(self, component: str, node: ir.Node, labels: Labels) -> None:
        """A norm writes its gain's channels; a permutation or rotation passes through it as well."""
        parameters = [i for i in (1, 2) if i < len(node.inputs) and node.inputs[i] is not None]
        x, shape = node.inputs[0], known_shape(node.outputs[0])
        if x is None or any(not is_constant(node.inputs[i]) for i in parameters):  # type: ignore[arg-type]
            raise Blocked(f"the gain of {node.name} is computed")
        channels = along(labels, -1, node)
        if (node.attributes.get_int("axis", -1) or 0) % len(shape) != len(shape) - 1 or len(node.outputs) > 1:
            raise Blocked(f"{node.name} norms more than its last axis")
        if self._change is not Change.SCALE and not np.array_equal(channels, np.arange(self._stream.width)):
            raise Blocked(f"{node.name} does not norm over all channels")
        if self._change is not Change.SCALE:
            self._passed[node] = -1
            self.spread(component, x, labels)
            self.spread(component, node.outputs[0], labels)
        if self._change is Change.ROTATE:
            if node.op_type != "RMSNormalization":
                raise Blocked(f"{node.name} subtracts a mean, which a rotation changes")
            self._stream.norms.append((component, node))
            return
        for i in parameters:
            self._slot(self._stream.writers, component, node, i, channels, node.outputs[0] if i == 1 else None)

    # Where they go to

    def _read(self, component: str, node: ir.Node, index: int, labels: Labels) -> None:
        entered = self._passed.get(node)
        if entered is not None and node.op_type not in LINEAR:
            if node.op_type in ("Mul", "Div") and self._change is not Change.PERMUTE and entered not in (-1, index):
                raise Blocked(f"both factors of {node.name} are of the stream")
            return
        weight = weight_operand(node) if index == 0 else None
        if weight is not None and weight.kind != "table":
            self._read_by_weight(component, node, weight, labels)
        elif node.op_type in NORMS and index == 0 and self._change is not Change.SCALE:
            self._norm(component, node, labels)
        else:
            self._pass(component, node, index, labels)

    def _read_by_weight(self, component: str, node: ir.Node, weight: WeightOperand, labels: Labels) -> None:
        if node.attributes.get_int("transA", 0):
            raise Blocked(f"{node.name} transposes its input")
        shape = constant_shape(weight.value)
        if weight.kind == "linear":
            channels = along(labels, -1, node)
            spread = channels.reshape([-1 if i == weight.input_axis else 1 for i in range(len(shape))])
        else:
            channels = along(labels, 1, node)
            groups = node.attributes.get_int("group", 1) or 1
            ones = [1] * (len(shape) - 2)
            if node.op_type == "ConvTranspose":
                spread = channels.reshape(-1, 1, *ones)
            elif groups == 1:
                spread = channels.reshape(1, -1, *ones)
            else:  # [C_out, C_in/groups, ...]: every output channel reads its group's inputs
                group = np.arange(shape[0]) // (shape[0] // groups)
                spread = channels[group[:, None] * shape[1] + np.arange(shape[1])].reshape(*shape[:2], *ones)
        self._slot(self._stream.readers, component, node, 1, spread, weight.activation)

    # What passes them on

    def _pass(self, component: str, node: ir.Node, index: int, labels: Labels) -> None:
        """Ops without weights; `index` is the input that holds the channels, −1 for the output."""
        op = node.op_type
        rule = {
            **dict.fromkeys(MOVES, self._moved), **dict.fromkeys(ELEMENTWISE, self._elementwise), "Slice": self._cut,
            "Split": self._cut, "Concat": self._joined, "Add": self._added, "Sub": self._added, "Mul": self._multiplied,
            "Div": self._multiplied, "MatMul": self._mixed,
        }.get(op)  # fmt: skip
        if rule is None or node.domain:
            raise Blocked(f"{op} {node.name} does not pass on a change of {self._change}")
        rule(component, node, index, labels)
        self._passed[node] = index

    def _moved(self, component: str, node: ir.Node, index: int, labels: Labels) -> None:
        x, y = node.inputs[0], node.outputs[0]
        if index > 0 or x is None:
            raise Blocked(f"{node.name} takes them for a shape")
        source, target = (x, y) if index == 0 else (y, x)
        if node.op_type == "Transpose":
            order = list(node.attributes["perm"].as_ints()) if "perm" in node.attributes else None
            perm = np.arange(labels.ndim)[::-1] if order is None else np.array(order)
            moved = labels.transpose(perm if index == 0 else np.argsort(perm))
        else:
            moved = compressed(np.broadcast_to(labels, known_shape(source)).reshape(known_shape(target)))
        self.spread(component, target, moved)

    def _elementwise(self, component: str, node: ir.Node, index: int, labels: Labels) -> None:
        allowed = {Change.SCALE: HOMOGENEOUS, Change.PERMUTE: ELEMENTWISE, Change.ROTATE: frozenset[str]()}
        if node.op_type not in allowed[self._change] or len(node.outputs) > 1:
            raise Blocked(f"{node.op_type} {node.name} does not pass on a change of {self._change}")
        if node.op_type in POOLS:
            along(labels, 1, node)
        self.spread(component, operand(node, 0) if index < 0 else node.outputs[0], labels)

    def _cut(self, component: str, node: ir.Node, index: int, labels: Labels) -> None:
        """Slice and Split along other axes than the channels'."""
        x = operand(node, 0)
        if node.op_type == "Split":
            axes = [node.attributes.get_int("axis", 0) or 0]
        else:
            given = constant(node.inputs[3]) if len(node.inputs) > 3 else np.arange(labels.ndim)
            axes = [] if given is None else [int(a) for a in np.ravel(given)]
        if index > 0 or not axes or any(labels.shape[a] > 1 for a in axes):
            raise Blocked(f"{node.op_type} {node.name} takes the channels apart")
        for value in (x, *node.outputs):
            self.spread(component, value, labels)

    def _joined(self, component: str, node: ir.Node, index: int, labels: Labels) -> None:
        """Concat along another axis than the channels'."""
        if labels.shape[node.attributes["axis"].as_int()] > 1:
            raise Blocked(f"Concat {node.name} puts other channels beside them")
        for i, value in enumerate(node.inputs):
            self._operand(component, node, i, value, labels)
        self.spread(component, node.outputs[0], labels)

    def _added(self, component: str, node: ir.Node, index: int, labels: Labels) -> None:
        output = fitted(labels, node.outputs[0])
        for i, value in enumerate(node.inputs):
            self._operand(component, node, i, value, output)
        self.spread(component, node.outputs[0], output)

    def _multiplied(self, component: str, node: ir.Node, index: int, labels: Labels) -> None:
        """A scale goes on from one factor to the product; for the others both factors are of the stream."""
        output = fitted(labels, node.outputs[0])
        factors = [0, 1] if index < 0 else [index]
        inner = [i for i in factors if not is_constant(operand(node, i))]
        others = [i for i in (0, 1) if i not in inner]
        if self._change is Change.PERMUTE:
            self._added(component, node, index, labels)
            return
        if len(inner) != 1 or (node.op_type == "Div" and inner[0] == 1):
            raise Blocked(f"{node.name} multiplies two tensors")
        if self._change is Change.ROTATE and any(scalar(node.inputs[i]) is None for i in others):
            raise Blocked(f"{node.name} multiplies channel by channel")
        self.spread(component, operand(node, inner[0]), output)
        self.spread(component, node.outputs[0], output)

    def _mixed(self, component: str, node: ir.Node, index: int, labels: Labels) -> None:
        """MatMul of activations: rows of the second operand are mixed, its columns keep apart."""
        if index == 0 or labels.shape[-2] > 1 or is_constant(operand(node, 1)):
            raise Blocked(f"MatMul {node.name} sums over the channels")
        self.spread(component, operand(node, 1), labels)
        self.spread(component, node.outputs[0], labels)

    def _operand(self, component: str, node: ir.Node, index: int, value: ir.Value | None, labels: Labels) -> None:
        """An operand that must change alike: an activation joins the stream, a constant is written by it."""
        if value is None or (self._change is Change.PERMUTE and scalar(value) is not None):
            return
        numbers = constant(value)
        if numbers is not None:
            if not numbers.any():  # zeros, as of padding, stay what they are
                return
            shape = constant_shape(value)
            while labels.ndim > len(shape) and labels.shape[0] == 1:
                labels = labels[0]
            if self._change is not Change.SCALE and np.broadcast_shapes(labels.shape, shape) != shape:
                raise Blocked(f"{node.name} has one constant for all channels")
            self._slot(self._stream.writers, component, node, index, labels, None)
        else:
            self.spread(component, value, labels)

    # Constants

    def _slot(
        self, into: list[Slot], component: str, node: ir.Node, index: int, channels: Labels, tensor: ir.Value | None
    ) -> None:
        """Note a constant; components with the same weight are followed from its `tensor`: its result, or its input."""
        slot = Slot(component, node, index, channels)
        if any(s.node is node and s.index == index for s in into):
            return
        into.append(slot)
        if tensor is None or not slot.value.is_initializer():
            return
        labels = self._stream.tensors[tensor]
        written = tensor is node.outputs[0]
        for name, graph in self._chain.graphs.items():
            twin = graph.graph.initializers.get(slot.name)
            for user, place in [] if twin is None or name == component else list(twin.uses()):
                if user.op_type == node.op_type and place == index:
                    self.spread(name, user.outputs[0] if written else operand(user, 0), labels)
