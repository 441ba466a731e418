"""What a convolution sees on average under each tap of its kernel."""

import math
from dataclasses import dataclass

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
        rank = len(self.kernel)
        padded = np.pad(x, [(0, 0), (0, 0), *zip(self.pads[:rank], self.pads[rank:], strict=True)])
        reach = [d * (k - 1) for d, k in zip(self.dilations, self.kernel, strict=True)]
        counts = [(n - r - 1) // s + 1 for n, r, s in zip(padded.shape[2:], reach, self.strides, strict=True)]
        axes = (0, *range(2, 2 + rank))
        found = np.empty((x.shape[1], math.prod(self.kernel)))
        for index, tap in enumerate(np.ndindex(*self.kernel)):
            starts = [t * d for t, d in zip(tap, self.dilations, strict=True)]
            under = tuple(
                slice(b, b + (n - 1) * s + 1, s) for b, n, s in zip(starts, counts, self.strides, strict=True)
            )
            found[:, index] = padded[:, :, *under].mean(axis=axes, dtype=np.float64)
        return found.reshape(-1, *self.kernel)


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
