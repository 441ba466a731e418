"""Bias correction: rounding a layer's weights and input shifts its mean output, and its bias takes the shift back.

Behind a ReLU or hard swish inputs have a mean, so the errors of the weights add up instead of cancelling: in depthwise
separable networks this is most of the error (Nagel et al. 2019, arXiv 1906.04721, section 4.2). The input's own rounding
has a mean where many values are alike, as an image's background is: all of them err to the same side (Finkelstein et al.
2019, arXiv 1906.03193, correct it by the same means).
"""

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from pocketport.calibration.encodings import Encoding
from pocketport.calibration.taps import window_of
from pocketport.compress.graph import static_shape
from pocketport.compress.pivot.input_scaling import as_layer

SIGNIFICANT = 3.0  # standard errors: a mean error of fewer may come from the rows that were drawn


def mean_rounding_error(rows: NDArray[np.float32], encoding: Encoding) -> NDArray[np.float64]:
    """The mean of what rounding adds to each channel, [C]; 0 where so few rows could give it by chance.

    Args:
        rows: [n, C], drawn from a layer's input.
        encoding: per tensor.
    """
    errors = encoding.dequantize(encoding.quantize(rows)).astype(np.float64) - rows
    mean, deviation = errors.mean(axis=0), errors.std(axis=0)
    return np.where(np.abs(mean) > SIGNIFICANT * deviation / np.sqrt(len(rows)), mean, 0.0)


def mean_output(node: ir.Node, weight: NDArray[np.float32], mean: NDArray[np.float64]) -> NDArray[np.float64]:
    """What a layer makes of an input that is `mean` [C] everywhere, on average over positions and without its bias, [N].

    Padding is 0 where it is known; of a ConvTranspose each tap meets one output in so many as the strides make of an input.
    """
    form = as_layer(node, weight, 1).weight.astype(np.float64)
    window, x = window_of(node), node.inputs[0]
    shape = None if x is None else static_shape(x)
    if window is not None and shape is not None:
        form *= window.means(np.ones((1, 1, *shape[2:]), np.float32)).ravel()
    elif node.op_type == "ConvTranspose":
        form /= np.prod(node.attributes.get_ints("strides", ()) or (1,))
    made: NDArray[np.float64] = np.einsum("goik,gi->go", form, mean.reshape(len(form), -1)).ravel()
    return made


def corrected_bias(
    bias: NDArray[np.floating],
    weight: NDArray[np.floating],
    rounded: NDArray[np.floating],
    taps: NDArray[np.float64],
) -> NDArray[np.float32]:
    """The bias that gives the float convolution's mean output with rounded weights.

    Args:
        bias: [N].
        weight: [N, C / groups, *kernel].
        rounded: what the weight's integers stand for, of the same shape.
        taps: [C, *kernel], mean input under each tap of the kernel.
    """
    groups = taps.shape[0] // weight.shape[1]
    error = (rounded.astype(np.float64) - weight).reshape(groups, len(weight) // groups, -1)
    shift = np.einsum("gnk,gk->gn", error, taps.reshape(groups, -1)).reshape(-1)
    return np.asarray(bias - shift, np.float32)
