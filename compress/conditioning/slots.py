"""Slots: constants of a graph that hold channels of a stream, and how their numbers are changed."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from pocketport.compress.conditioning.labels import Labels, constant_shape
from pocketport.compress.graph import constant

Numbers: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True)
class Slot:
    """A constant that a node computes with.

    Attributes:
        component: the graph that the node is in.
        node: the node.
        index: the constant's place among the node's inputs.
        channels: which channel of the stream each element belongs to, broadcastable to the constant's shape.
    """

    component: str
    node: ir.Node
    index: int
    channels: Labels

    @property
    def value(self) -> ir.Value:
        """The constant."""
        value = self.node.inputs[self.index]
        assert value is not None
        return value

    @property
    def name(self) -> str:
        """The constant's name, which components with the same weights share."""
        return self.value.name or ""

    @property
    def axis(self) -> int:
        """The one axis that the channels lie along, counted from the end as broadcasting does."""
        (axis,) = (i for i, size in enumerate(self.channels.shape) if size > 1)
        return axis - self.channels.ndim

    def array(self) -> Numbers:
        """The numbers, float64."""
        return np.asarray(constant(self.value), np.float64)

    def scale(self, factors: Numbers) -> None:
        """Multiply each element by the factor of its channel, `factors` [width]."""
        spread = factors[self.channels]
        self._edit(lambda x: x * spread, np.broadcast_shapes(constant_shape(self.value), spread.shape))

    def shift(self, offsets: Numbers) -> None:
        """Add to each element the offset of its channel, `offsets` [width]."""
        spread = offsets[self.channels]
        self._edit(lambda x: x + spread, np.broadcast_shapes(constant_shape(self.value), spread.shape))

    def fill(self, number: float) -> None:
        """Give every element this number."""
        self._edit(lambda x: np.full(x.shape, number), constant_shape(self.value))

    def permute(self, order: NDArray[np.intp]) -> None:
        """Put channel order[i] in the place of channel i; the channels lie whole and in order along one axis."""
        self._edit(lambda x: np.take(x, order, axis=self.axis), constant_shape(self.value))

    def rotate(self, matrix: Numbers, outer: Numbers | None = None) -> None:
        """x → x·matrix along the channels' axis, block by block where `matrix` [d, d] is narrower.

        With `outer` [e, e] it is x·(outer ⊗ matrix), of e·d channels: blocks are mixed too.
        """
        axis, d = self.axis, len(matrix)

        def change(x: Numbers) -> Numbers:
            moved = np.moveaxis(x, axis, -1)
            turned = moved.reshape(*moved.shape[:-1], -1, d) @ matrix
            turned = turned if outer is None else outer.T @ turned
            return np.moveaxis(turned.reshape(moved.shape), -1, axis)

        self._edit(change, constant_shape(self.value))

    def _edit(self, change: Callable[[Numbers], Numbers], shape: tuple[int, ...]) -> None:
        """Change the numbers, in float64, when they are asked for; nodes outside of the stream keep the old ones."""
        old = self.value
        tensor = ir.convenience.get_const_tensor(old)
        assert tensor is not None
        dtype = tensor.dtype

        def compute() -> ir.TensorProtocol:
            numbers = change(np.asarray(tensor.numpy(), np.float64))
            return ir.Tensor(np.ascontiguousarray(numbers, dtype=dtype.numpy()))

        if old.is_initializer() and len(old.uses()) == 1:
            old.const_value = ir.LazyTensor(compute, dtype=dtype, shape=ir.Shape(shape), name=old.name)
            old.shape = ir.Shape(shape)
            return
        graph = self.node.graph
        assert isinstance(graph, ir.Graph)
        name = f"{self.node.outputs[0].name}.{old.name}"
        new = ir.Value(
            name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype),
            const_value=ir.LazyTensor(compute, dtype=dtype, shape=ir.Shape(shape), name=name),
        )  # fmt: skip
        graph.register_initializer(new)
        self.node.replace_input_with(self.index, new)


def greatest(slots: list[Slot], width: int) -> Numbers:
    """Greatest magnitude of each channel over these constants, [width]."""
    result = np.zeros(width)
    for slot in slots:
        array = np.abs(slot.array())
        channels = slot.channels.reshape((1,) * (array.ndim - slot.channels.ndim) + slot.channels.shape)
        others = tuple(i for i, size in enumerate(channels.shape) if size == 1)
        np.maximum.at(result, channels.ravel(), array.max(axis=others, keepdims=True).ravel())
    return result
