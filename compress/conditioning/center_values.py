"""Values of attention without their mean: what rounding takes from probabilities then costs only what tokens differ by."""

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from pocketport.compress.conditioning.base import Observe, Rewrite, from_linear
from pocketport.compress.conditioning.search import MOVES, streams_from
from pocketport.compress.conditioning.slots import Slot
from pocketport.compress.conditioning.streams import Chain, Change, Stream
from pocketport.compress.structure import is_constant

BIAS = 2  # of a Gemm's inputs


class CenterValues(Rewrite):
    """v → v − c, with c the mean of each channel of the values over the calibration rows.

    Rows of attention's probabilities p sum to one, so p·v = p·(v − c) + c: the bias of the layer that makes the values
    takes −c, that of the layer behind the attention W·c. In float nothing changes. Rounding p by e costs e·v, of which
    e·c, the same for all channels of a token and the largest part where values have a mean, is gone.
    """

    def __call__(self, chain: Chain, observe: Observe) -> tuple[list[Stream], dict[str, str]]:
        """See `Rewrite`."""
        starts = list(_values(chain))
        found, blocked = streams_from(chain, starts, Change.SCALE)
        streams = []
        for stream in found:
            reason = _hindrance(stream)
            if reason:
                blocked[stream.name] = reason
            else:
                streams.append(stream)
        makers = {stream.name: _biases(stream) for stream in streams}
        wanted: dict[str, set[str]] = {}
        for slots in makers.values():
            for slot in slots:
                wanted.setdefault(slot.component, set()).add(slot.node.outputs[0].name or "")
        seen = observe(wanted) if streams else {}
        for stream in streams:
            total, rows = np.zeros(stream.width), np.zeros(stream.width)
            for slot in makers[stream.name]:
                sample = seen[f"{slot.component}/{slot.node.outputs[0].name}"].sample
                np.add.at(total, slot.channels.ravel(), sample.sum(axis=0, dtype=np.float64))
                np.add.at(rows, slot.channels.ravel(), len(sample))
            _center(stream, total / np.maximum(rows, 1))
        return streams, blocked


def _values(chain: Chain) -> Iterator[tuple[str, ir.Value]]:
    """(component, output of the layer that makes values) of every attention."""
    for component, graph in chain.graphs.items():
        for node in graph.graph:
            if node.op_type == "MatMul" and _sums_to_one(node.inputs[0]):
                value = node.inputs[1]
                while value is not None and (made := value.producer()) is not None and made.op_type in MOVES:
                    value = made.inputs[0]
                if value is not None and (made := value.producer()) is not None and made.op_type == "Gemm":
                    yield component, value


def _sums_to_one(value: ir.Value | None) -> bool:
    """Whether the last axis is that of a softmax."""
    node = None if value is None else value.producer()
    if node is None or node.op_type != "Softmax":
        return False
    rank = len(node.outputs[0].shape or ())
    return node.attributes.get_int("axis", -1) in (-1, rank - 1)


def _hindrance(stream: Stream) -> str:
    """Why a constant may not be added to the channels of a stream; empty where it may."""
    if stream.crossings or not from_linear(stream):
        return f"the values {stream.name} are not between two linear layers of one component"
    for node in {slot.node for slot in (*stream.writers, *stream.readers)}:
        bias = node.inputs[BIAS] if node.op_type == "Gemm" and len(node.inputs) > BIAS else None
        if bias is None or not is_constant(bias):
            return f"{node.name} has no constant bias"
        if node.attributes.get_float("alpha", 1.0) != 1 or node.attributes.get_float("beta", 1.0) != 1:
            return f"{node.name} multiplies its product or its bias"
    writers = {slot.node for slot in stream.writers}
    for value in stream.tensors:
        maker = value.producer()
        mixed = maker is not None and maker.op_type == "MatMul" and _sums_to_one(maker.inputs[0])
        if maker is None or not (maker in writers or maker.op_type in MOVES or mixed):
            return f"{value.name} is not what it was plus a constant"
    return ""


def _biases(stream: Stream) -> list[Slot]:
    return [slot for slot in stream.writers if slot.index == BIAS]


def _center(stream: Stream, mean: NDArray[np.float64]) -> None:
    for slot in _biases(stream):
        slot.shift(-mean)
    for slot in stream.readers:
        product = (slot.array() * mean[slot.channels]).sum(axis=slot.axis)
        Slot(slot.component, slot.node, BIAS, np.arange(len(product), dtype=np.int32)).shift(product)
