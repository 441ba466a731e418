"""Labels: which channel of a stream each element of a tensor belongs to, as arrays that broadcast to its shape."""

from typing import TypeAlias

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from pocketport.compress.graph import dimensions, static_shape

Labels: TypeAlias = NDArray[np.int32]


class Blocked(Exception):
    """The change can't be passed on; the message says where and why."""


def known_shape(value: ir.Value) -> tuple[int, ...]:
    """The static shape; Blocked where it is not known."""
    shape = static_shape(value)
    if shape is None:
        raise Blocked(f"the shape of {value.name} is not known")
    return shape


def constant_shape(value: ir.Value) -> tuple[int, ...]:
    """The shape of a constant."""
    tensor = ir.convenience.get_const_tensor(value)
    assert tensor is not None
    return dimensions(tensor)


def operand(node: ir.Node, index: int) -> ir.Value:
    """An input that is there; Blocked where it is left out."""
    value = node.inputs[index]
    if value is None:
        raise Blocked(f"{node.name} lacks an operand")
    return value


def fitted(labels: Labels, value: ir.Value) -> Labels:
    """`labels` at the rank of `value`, every axis 1 or whole."""
    shape = known_shape(value)
    extra = labels.ndim - len(shape)
    if extra < 0:
        labels = labels.reshape((1,) * -extra + labels.shape)
    elif extra:
        if any(size > 1 for size in labels.shape[:extra]):
            raise Blocked(f"{value.name} is repeated over the channels")
        labels = labels.reshape(labels.shape[extra:])
    if any(size not in (1, whole) for size, whole in zip(labels.shape, shape, strict=True)):
        raise Blocked(f"{value.name} is repeated over the channels")
    return labels


def along(labels: Labels, axis: int, node: ir.Node) -> Labels:
    """The labels as a vector, if they lie along one axis only."""
    if labels.shape[axis] != labels.size:
        raise Blocked(f"the channels of {node.name} lie along several axes")
    return labels.reshape(-1)


def compressed(labels: Labels) -> Labels:
    """Axes along which nothing changes, as 1."""
    for axis in range(labels.ndim):
        first = labels.take([0], axis=axis)
        if labels.shape[axis] > 1 and bool((labels == first).all()):
            labels = first
    return labels
