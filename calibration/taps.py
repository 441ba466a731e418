"""What a convolution sees on average under each tap of its kernel."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray


@dataclass(frozen=True)
class Window:
    """How a kernel walks over its input; one entry a spatial dimension (`pads`: all begins, then all ends)."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...]

    def means(self, x: NDArray[np.floating]) -> NDArray[np.float64]:
        """Mean over samples and positions of what lies under each tap: [N, C, *spatial] → [C, *kernel]."""
        means: NDArray[np.floating] = x[0] if len(x) == 1 else x.mean(axis=0)
        rows = x.shape[1]
        # Which positions a tap sees does not depend on the other dimensions: one small product for each of them.
        for axis, taps in enumerate(self.kernel[:-1]):
            means = _seen(self, axis, x.shape[2 + axis]) @ means.reshape(rows, x.shape[2 + axis], -1)
            rows *= taps
        means = means.reshape(rows, -1) @ np.ascontiguousarray(_seen(self, len(self.kernel) - 1, x.shape[-1]).T)
        return means.reshape(x.shape[1], *self.kernel).astype(np.float64)


@lru_cache(maxsize=1024)
def _seen(window: Window, axis: int, size: int) -> NDArray[np.float32]:
    """[taps, size]: how much of the mean under a tap each position of a dimension makes; pads are zeros.

    Neither factor of a product is transposed: OpenBLAS 0.3.31 with AVX-512 multiplies two small transposed float32 matrices
    in a buffer that all threads share.
    """
    kernel, stride, dilation = window.kernel[axis], window.strides[axis], window.dilations[axis]
    before, behind = window.pads[axis], window.pads[len(window.kernel) + axis]
    count = (size + before + behind - dilation * (kernel - 1) - 1) // stride + 1
    position = np.arange(kernel)[:, None] * dilation + np.arange(count) * stride - before
    tap, place = np.nonzero((position >= 0) & (position < size))
    seen = np.zeros((kernel, size), np.float32)
    np.add.at(seen, (tap, position[tap, place]), np.float32(1 / count))
    return seen


def window_of(node: ir.Node) -> Window | None:
    """The window of a Conv with a constant weight; None for other ops, and for pads that depend on the input's size."""
    if node.op_type != "Conv" or node.inputs[1] is None:
        return None
    weight = ir.convenience.get_const_tensor(node.inputs[1])
    if weight is None or node.attributes.get_string("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return None
    kernel = tuple(int(d) for d in weight.shape[2:])  # type: ignore[arg-type]
    ones = (1,) * len(kernel)

    def attribute(name: str, default: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(node.attributes.get_ints(name, default) or default)

    return Window(
        kernel, attribute("strides", ones), attribute("dilations", ones), attribute("pads", (0,) * 2 * len(kernel))
    )
