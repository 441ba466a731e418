"""What is known of one tensor of one sample by itself: its channels' extremes and moments."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketport.calibration.statistics import ChannelRange, SecondMoment

ATTENTION_BIAS = "attention_bias"  # of the component graphs: 0 where attention is allowed, negative where not
ATTENTION_MASK = "attention_mask"  # of encoders of text: 1 for tokens, 0 for padding
KEYS = "present_key_"  # outputs of decoders that go into the key-value cache begin so


def channel_range(value: NDArray[Any], axis: int) -> ChannelRange:
    """Extremes of each channel; `axis` is theirs: 1, or the last one."""
    if axis == value.ndim - 1:
        rows = value.reshape(-1, value.shape[-1])
        low, high = rows.min(axis=0), rows.max(axis=0)
    else:
        channels = value if len(value) == 1 else value.swapaxes(0, 1)
        values, begins = channels.ravel(), np.arange(value.shape[1]) * (value.size // value.shape[1])
        low, high = np.minimum.reduceat(values, begins), np.maximum.reduceat(values, begins)  # twice as fast as by axis
    return ChannelRange(low.astype(np.float32), high.astype(np.float32))


def key_range(value: NDArray[Any], real: NDArray[np.bool_] | None) -> ChannelRange:
    """Extremes of each channel of keys [1, heads, tokens, d] over the tokens that are no padding: [heads, d] each."""
    tokens = without_padding(value[0].swapaxes(0, 1), real)
    return ChannelRange(tokens.min(axis=0).astype(np.float32), tokens.max(axis=0).astype(np.float32))


def channel_moment(value: NDArray[Any], *, full: bool) -> SecondMoment:
    """Of a convolution's input [N, C, *spatial]."""
    x = np.asarray(value, np.float32).reshape(*value.shape[:2], -1)
    rows = len(x) * x.shape[2]
    if not full:
        return SecondMoment(np.vecdot(x, x).sum(axis=0, dtype=np.float64), rows)
    product = np.matmul(x, x.swapaxes(1, 2)).sum(axis=0)
    return SecondMoment(np.diagonal(product).astype(np.float64), rows, product)


def row_moment(value: NDArray[Any], *, full: bool) -> SecondMoment:
    """Of a linear layer's input […, K]."""
    rows = np.ascontiguousarray(value, np.float32).reshape(-1, value.shape[-1])
    diagonal = np.square(rows).sum(axis=0, dtype=np.float64)
    return SecondMoment(diagonal, len(rows), rows.T @ rows if full else None)


def real_rows(inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.bool_] | None:
    """Which rows of a padded sequence are not padding: those that its mask marks, or that its last row may attend to.

    Static shapes make padding common, and weights should not be fitted to it. Ranges do include it, since it flows
    through the same tensors. None where the component has no `attention_mask` [rows] and no `attention_bias`
    [1, rows or 1, columns].
    """
    mask = inputs.get(ATTENTION_MASK)
    if mask is not None and mask.ndim == 1:
        return np.asarray(mask != 0)
    bias = inputs.get(ATTENTION_BIAS)
    return bias[0, -1] == 0 if bias is not None and bias.ndim == 3 else None


def without_padding(value: NDArray[Any], real: NDArray[np.bool_] | None) -> NDArray[Any]:
    """Those rows of a tensor that are no padding."""
    return value if real is None or len(value) != len(real) else value[real]
