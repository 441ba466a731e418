"""Nodes between floats and the integers of a key-value cache, both ways: the arithmetic of `integer_cache`."""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from pocketport.calibration.statistics import ChannelRange
from pocketport.compress.graph import constant

KEY, VALUE, RANGE = "key_", "value_", "value_range_"
LEAST_STEP = 1e-6  # where all numbers of a range are the same
ROOM = {8: 0.25, 4: 0.0}  # of a channel's range on either side, for keys that calibration did not see


class CacheNodes:
    """Nodes for one graph, in order; constants go into the graph at once.

    Args:
        graph: that they are for.
        bits: of an integer, 8 or 4.

    Attributes:
        made: the nodes.
    """

    def __init__(self, graph: ir.Graph, bits: int) -> None:
        self.made: list[ir.Node] = []
        self._graph = graph
        self._bits = bits

    def set_channels(self, state: str, extremes: ChannelRange) -> None:
        """Make least and step of every channel of ``key_i`` constants of the graph, float32 [kv, 1, d] each."""
        room = ROOM[self._bits] * (extremes.high - extremes.low)
        low, high = (extremes.low - room)[:, None], (extremes.high + room)[:, None]
        self._constant(f"{state}/least", low.astype(np.float32))
        step = np.maximum((high - low) / (2**self._bits - 1), LEAST_STEP)
        self._constant(f"{state}/step", step.astype(np.float32))

    def to_integers(self, state: str, value: ir.Value, path: str) -> tuple[ir.Value, ir.Value | None]:
        """What the cache holds of floats [1, kv, T, d]: integers and, of values, least and step of each token.

        Args:
            state: ``key_i`` (whose channels are set) or ``value_i``.
            value: the floats.
            path: begins the nodes' names.
        """
        kept = None
        if state.startswith(VALUE):
            kept, least, step = self._token_range(value, path)
        else:
            least, step = self._channels(state)
        scaled = self._op("Div", [self._op("Sub", [value, least], f"{path}/shifted"), step], f"{path}/quotient")
        ends = [self._constant(f"float_{n}", np.array(n, np.float32)) for n in (0, 2**self._bits - 1)]
        clipped = self._op("Clip", [self._op("Round", [scaled], f"{path}/rounded"), *ends], f"{path}/clipped")
        integers = self._cast(clipped, ir.DataType.UINT8, f"{path}/integers")
        if self._bits == 8:
            return integers, kept
        low, high = self._halves(integers, f"{path}/halves")
        high = self._op("BitShift", [high, self._shift()], f"{path}/raised", direction="LEFT")
        return self._op("BitwiseOr", [low, high], f"{path}/packed"), kept

    def to_floats(self, state: str, integers: ir.Value, kept: ir.Value | None, path: str) -> ir.Value:
        """Floats [1, kv, T, d] from what the cache holds; arguments as `to_integers` has them."""
        if self._bits == 4:
            low = self._op("BitwiseAnd", [integers, self._constant("uint8_15", np.array(15, np.uint8))], f"{path}/low")
            high = self._op("BitShift", [integers, self._shift()], f"{path}/high", direction="RIGHT")
            integers = self._op("Concat", [low, high], f"{path}/unpacked", axis=-1)
        steps = self._cast(integers, ir.DataType.FLOAT, f"{path}/steps")
        least, step = self._channels(state) if kept is None else self._halves(kept, f"{path}/range")
        return self._op("Add", [self._op("Mul", [steps, step], f"{path}/product"), least], f"{path}/sum")

    def _token_range(self, value: ir.Value, path: str) -> tuple[ir.Value, ir.Value, ir.Value]:
        """Least and step over the last axis, as one tensor and [.., 1] each."""
        axes = self._constant("int64_-1", np.array([-1], np.int64))
        least, most = (self._op(op, [value, axes], f"{path}/{op}", keepdims=1) for op in ("ReduceMin", "ReduceMax"))
        levels = self._constant(f"float_{2**self._bits - 1}", np.array(2**self._bits - 1, np.float32))
        step = self._op("Div", [self._op("Sub", [most, least], f"{path}/width"), levels], f"{path}/exact_step")
        step = self._op("Max", [step, self._constant("least_step", np.array(LEAST_STEP, np.float32))], f"{path}/step")
        return self._op("Concat", [least, step], f"{path}/token_range", axis=-1), least, step

    def _channels(self, state: str) -> tuple[ir.Value, ir.Value]:
        return self._graph.initializers[f"{state}/least"], self._graph.initializers[f"{state}/step"]

    def _shift(self) -> ir.Value:
        return self._constant("uint8_4", np.array(4, np.uint8))

    def _op(self, op: str, inputs: Sequence[ir.Value], name: str, **attributes: object) -> ir.Value:
        """A node with one output, both of this name."""
        node = ir.node(op, inputs, attributes, name=name)
        node.outputs[0].name = name
        self.made.append(node)
        return node.outputs[0]

    def _halves(self, value: ir.Value, name: str) -> Sequence[ir.Value]:
        """A tensor cut in two along its last axis."""
        node = ir.node("Split", [value], {"axis": -1, "num_outputs": 2}, num_outputs=2, name=name)
        node.outputs[0].name, node.outputs[1].name = f"{name}/first", f"{name}/second"
        self.made.append(node)
        return node.outputs

    def _constant(self, name: str, array: NDArray[np.generic]) -> ir.Value:
        """An initializer, shared by all that use its name."""
        if name not in self._graph.initializers:
            tensor = ir.Tensor(array, name=name)
            kind = ir.TensorType(tensor.dtype)
            value = ir.Value(name=name, shape=ir.Shape(array.shape), type=kind, const_value=tensor)
            self._graph.register_initializer(value)
        return self._graph.initializers[name]

    def _cast(self, value: ir.Value, dtype: ir.DataType, name: str) -> ir.Value:
        return self._op("Cast", [value], name, to=int(dtype))


def channel_constants(graph: ir.Graph, state: str) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Least and step of every channel of ``key_i`` as a graph has them, [kv, 1, d] each."""
    least, step = (
        np.asarray(constant(graph.initializers[f"{state}/{name}"]), np.float32) for name in ("least", "step")
    )
    return least, step
