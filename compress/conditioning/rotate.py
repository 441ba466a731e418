"""Rotations: outlier channels spread over all channels by orthogonal matrices that cancel between layers."""

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from pocketport.compress.conditioning.base import Observe, Rewrite, from_norm
from pocketport.compress.conditioning.hadamard import orthogonal
from pocketport.compress.conditioning.labels import Blocked
from pocketport.compress.conditioning.search import stream_of, streams_from
from pocketport.compress.conditioning.streams import Chain, Change, Stream
from pocketport.compress.structure import is_constant


class Rotate(Rewrite):
    """Residual stream and values turned by randomized Hadamard matrices, all of it folded into weights.

    The residual stream x becomes x·R: the embedding, the connector's last layer and every output projection are
    multiplied by R behind, every layer that reads the stream by Rᵀ before. RMSNormalization commutes with R once its
    gain is folded into the layers behind it. Values become v·R head by head, which the output projections take back;
    they stay so in the cache (QuaRot, Ashkboos et al. 2024, arXiv 2404.00456, section 4, stages 1a and 1c, without the
    online transforms; SpinQuant, Liu et al. 2024, arXiv 2405.16406, R1 and R2). LayerNormalization, and norms whose
    outputs are added to the stream, do not commute with R: such streams are left alone.

    Args:
        seed: of the random signs.
        hadamard: 0 for uniformly random orthogonal matrices, as where no Hadamard matrix of the width is known.
        residual: 0 leaves the residual stream alone.
        values: 0 leaves the values alone.
    """

    def __init__(self, seed: float = 0, hadamard: float = 1, residual: float = 1, values: float = 1) -> None:
        self._seed, self._hadamard = int(seed), bool(hadamard)
        self._residual, self._values = bool(residual), bool(values)

    def __call__(self, chain: Chain, observe: Observe) -> tuple[list[Stream], dict[str, str]]:
        """See `Rewrite`; nothing is observed."""
        blocked: dict[str, str] = {}
        turned: list[Stream] = []
        for wanted, starts in ((self._residual, _normed(chain)), (self._values, _mixed(chain))):
            if not wanted:
                continue
            streams, reasons = streams_from(chain, starts, Change.ROTATE)
            blocked |= reasons
            for stream in streams:
                try:
                    self._turn(chain, stream)
                    turned.append(stream)
                except Blocked as reason:
                    blocked = {stream.name: str(reason), **blocked}
        return turned, blocked

    def _turn(self, chain: Chain, stream: Stream) -> None:
        """Raises `Blocked` before anything is changed."""
        width = _block(stream)
        if not stream.writers or not stream.readers:
            raise Blocked("nothing but norms reads or writes it")
        behind = [_gain(chain, component, node) for component, node in stream.norms]
        folded: set[tuple[str, ir.Node]] = set()
        for gains in behind:
            if (gains.writers[0].component, gains.writers[0].node) in folded:
                continue  # components with the same weights are folded together
            folded |= {(s.component, s.node) for s in gains.writers}
            gain = gains.writers[0].array()
            for slot in gains.readers:
                slot.scale(gain)
            for slot in gains.writers:
                slot.fill(1.0)
        matrix = orthogonal(width, self._seed, hadamard=self._hadamard)
        for slot in (*stream.writers, *stream.readers):
            slot.rotate(matrix)


def _gain(chain: Chain, component: str, norm: ir.Node) -> Stream:
    """What a norm hands on, if its gain can be folded into all that reads it."""
    try:
        stream = stream_of(chain, component, norm.outputs[0], Change.SCALE)
    except Blocked as reason:
        raise Blocked(f"the gain of a norm can't be folded: {reason}") from None
    if not from_norm(stream) or len({slot.name for slot in stream.writers}) > 1:
        raise Blocked(f"the gain of a norm can't be folded: not only linear layers read {norm.name}")
    return stream


def _normed(chain: Chain) -> Iterator[tuple[str, ir.Value]]:
    """Inputs of norms: the residual stream is one of them."""
    for component, graph in chain.graphs.items():
        for node in graph.graph:
            if node.op_type == "RMSNormalization" and node.inputs[0] is not None:
                yield component, node.inputs[0]


def _mixed(chain: Chain) -> Iterator[tuple[str, ir.Value]]:
    """Results of attention: weights by values, both computed."""
    for component, graph in chain.graphs.items():
        for node in graph.graph:
            if node.op_type == "MatMul" and not any(v is None or is_constant(v) for v in node.inputs):
                yield component, node.outputs[0]


def _block(stream: Stream) -> int:
    """The greatest width at which every tensor and constant of a stream is whole blocks of channels.

    Raises:
        Blocked: there is none above 1.
    """
    labels = [*stream.tensors.values(), *(s.channels for s in (*stream.writers, *stream.readers))]
    width: int = min(max(array.shape) if array.size == max(array.shape) else array.shape[-1] for array in labels)
    order = np.arange(width)
    for array in labels:
        rows = array.reshape(-1, width) if array.size % width == 0 else np.zeros((1, 0), np.int32)
        if width < 2 or rows.shape[1] != width or not np.array_equal(rows % width, np.broadcast_to(order, rows.shape)):
            raise Blocked("its channels are not in whole blocks")
    return width
