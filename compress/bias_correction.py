"""Bias correction: rounding a convolution's weights shifts its mean output, and its bias takes the shift back.

Behind a ReLU or hard swish inputs have a mean, so the errors of the weights add up instead of cancelling: in depthwise
separable networks this is most of the error (Nagel et al. 2019, arXiv 1906.04721, section 4.2).
"""

import numpy as np
from numpy.typing import NDArray


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
