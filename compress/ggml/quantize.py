"""Matrices to ggml's block formats: our own search for the scales, their bit layouts.

The formats are those of ``ggml-common.h``; the weighting of errors by the mean square of each input times √(σ² + x²) is
llama.cpp's for its importance matrices.
"""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pocketport.compress.formats.sizes import GGML_BLOCKS
from pocketport.compress.ggml import packing
from pocketport.compress.ggml.search import Codebook, affine_scale, codebook_scale, signed_scale
from pocketport.errors import UsageError

CHUNK_ELEMENTS = 1 << 18  # what the caches of two cores hold
IQ4 = Codebook([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113])
LEAST_IMPORTANCE = 1e-4  # of the mean: inputs that were never seen still must not be thrown away
UNIT_STARTS = tuple(0.2 * step for step in range(-4, 5))  # of the 63 steps that the scales of a super-block span
SUPER = 256  # weights of a super-block

Bytes = NDArray[np.uint8]


@torch.inference_mode()
def quantize(kind: str, matrix: NDArray[np.float32], importance: NDArray[np.float32] | None) -> Bytes:
    """Quantize rows of whole blocks.

    Args:
        kind: a ggml type, one of `QUANTIZERS`.
        matrix: float32 [rows, K], finite.
        importance: float32 [K] ≥ 0, the mean square of each input; None: all the same.

    Returns:
        uint8 [rows, bytes of a row].

    Raises:
        UsageError: no such type, or K is not a multiple of its block.
    """
    if kind not in QUANTIZERS:
        raise UsageError(f"{kind!r} can't be written", where="ggml type", fix=f"choose from {', '.join(QUANTIZERS)}")
    rows, columns = matrix.shape
    block, size = GGML_BLOCKS[kind]
    if columns % block:
        raise UsageError(
            f"{columns} columns are not blocks of {block}", where=f"ggml type {kind}", fix="choose a type of block 32"
        )
    heed = None
    if importance is not None:
        mean = float(importance.mean()) or 1.0
        heed = torch.from_numpy(importance / np.float32(mean)).clamp_min(LEAST_IMPORTANCE).reshape(1, -1, block)
    result = np.empty((rows, columns // block * size), np.uint8)
    step = max(1, CHUNK_ELEMENTS // columns)
    source = torch.from_numpy(np.ascontiguousarray(matrix))
    for start in range(0, rows, step):
        x = source[start : start + step].reshape(-1, columns // block, block)
        weights = None if heed is None else heed.expand(x.shape).reshape(-1, block)
        packed = QUANTIZERS[kind](x.reshape(-1, block), weights)
        result[start : start + step] = packed.reshape(len(x), -1)
    return result


def _weights(x: Tensor, heed: Tensor | None) -> Tensor:
    """How much each weight's error counts, [B, n]: √(σ² + x²), σ² twice the block's mean square, times `heed`."""
    variance = (x * x).mean(-1, keepdim=True) * 2
    weights = (variance + x * x).sqrt_().clamp_min_(torch.finfo(torch.float32).tiny)
    return weights if heed is None else weights * heed


def _half(values: Tensor) -> Tensor:
    """Rounded to float16, still float32."""
    return values.half().float()


def _over(x: Tensor, scale: Tensor) -> Tensor:
    """x / scale, 0 where the scale is 0."""
    return x * torch.where(scale != 0, 1 / scale, 0)


def _low(q: Bytes) -> Bytes:
    return np.bitwise_and(q, 15, dtype=np.uint8)


def _bytes(integers: Tensor) -> Bytes:
    array: Bytes = integers.to(torch.uint8).numpy()
    return array


def _q8_0(x: Tensor, heed: Tensor | None) -> Bytes:
    scale = x.abs().amax(-1) / 127
    q = _over(x, scale[:, None]).round_().to(torch.int8).numpy().view(np.uint8)
    return np.concatenate([packing.half_bytes(scale.numpy()), q], axis=1)


def _signed(x: Tensor, heed: Tensor | None, bits: int) -> tuple[Bytes, Bytes]:
    """Scale bytes [B, 2] and integers from 0 on [B, 32]."""
    middle = 2 ** (bits - 1)
    scale = _half(signed_scale(x, _weights(x, heed), -middle))
    q = _over(x, scale[:, None]).round_().clamp_(-middle, middle - 1) + middle
    return packing.half_bytes(scale.numpy()), _bytes(q)


def _q4_0(x: Tensor, heed: Tensor | None) -> Bytes:
    scale, q = _signed(x, heed, 4)
    return np.concatenate([scale, packing.halves(q, 16)], axis=1)


def _q5_0(x: Tensor, heed: Tensor | None) -> Bytes:
    scale, q = _signed(x, heed, 5)
    return np.concatenate([scale, packing.fifth_bits(q), packing.halves(_low(q), 16)], axis=1)


def _affine(x: Tensor, heed: Tensor | None, bits: int) -> tuple[Bytes, Bytes]:
    """Scale and offset bytes [B, 4] and integers [B, 32]."""
    greatest = 2**bits - 1
    scale, offset = (_half(v) for v in affine_scale(x, _weights(x, heed), greatest))
    q = _over(x + offset[:, None], scale[:, None]).round_().clamp_(0, greatest)
    both = np.concatenate([packing.half_bytes(scale.numpy()), packing.half_bytes(-offset.numpy())], axis=1)
    return both, _bytes(q)


def _q4_1(x: Tensor, heed: Tensor | None) -> Bytes:
    scales, q = _affine(x, heed, 4)
    return np.concatenate([scales, packing.halves(q, 16)], axis=1)


def _q5_1(x: Tensor, heed: Tensor | None) -> Bytes:
    scales, q = _affine(x, heed, 5)
    return np.concatenate([scales, packing.fifth_bits(q), packing.halves(_low(q), 16)], axis=1)


def _affine_super(x: Tensor, heed: Tensor | None, bits: int) -> tuple[Bytes, Bytes]:
    """Header [B, 16] (scale, scale of offsets, eight 6-bit pairs) and integers [B, 256] of 8 sub-blocks of 32."""
    greatest, count = 2**bits - 1, len(x)
    parts, weights = x.reshape(-1, 32), _weights(x, heed).reshape(-1, 32)
    scale, offset = affine_scale(parts, weights, greatest)
    total = weights.sum(-1)
    first = torch.linalg.vecdot(weights, parts)
    sixths, unit = _sixths(scale.reshape(count, 8), total.reshape(count, 8))
    s = (sixths * unit).reshape(-1)
    # The offsets are fitted once more, to what has become of the scales.
    q = _over(parts + offset[:, None], s[:, None]).round_().clamp_(0, greatest)
    offset = ((s * torch.linalg.vecdot(weights, q) - first) / total).clamp_min_(0)
    offsets, unit_offset = _sixths(offset.reshape(count, 8), total.reshape(count, 8))
    m = (offsets * unit_offset).reshape(-1)
    q = _over(parts + m[:, None], s[:, None]).round_().clamp_(0, greatest)
    header = [packing.half_bytes(unit.flatten().numpy()), packing.half_bytes(unit_offset.flatten().numpy())]
    header.append(packing.six_bit_pairs(_bytes(sixths), _bytes(offsets)))
    return np.concatenate(header, axis=1), _bytes(q).reshape(count, SUPER)


def _sixths(values: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Values ≥ 0 [B, 8] as integers 0 … 63 times one float16 a block, by weighted least squares: ([B, 8], [B, 1])."""
    inverse = _over(torch.full_like(values[:, :1], 63.0), values.amax(-1, keepdim=True))
    best = torch.full_like(inverse, -1.0)
    unit = torch.zeros_like(inverse)
    for change in UNIT_STARTS:
        q = (values * (inverse * (1 + change / 63))).round_().clamp_(0, 63)
        cross, square = (weights * q * values).sum(-1, keepdim=True), (weights * q * q).sum(-1, keepdim=True)
        gain = torch.where(square > 0, cross * cross / square, 0)
        better = gain > best
        best, unit = torch.where(better, gain, best), torch.where(better, _over(cross, square), unit)
    unit = _half(unit)
    return _over(values, unit).round_().clamp_(0, 63), unit


def _q4_k(x: Tensor, heed: Tensor | None) -> Bytes:
    header, q = _affine_super(x, heed, 4)
    return np.concatenate([header, packing.halves(q, 32)], axis=1)


def _q5_k(x: Tensor, heed: Tensor | None) -> Bytes:
    header, q = _affine_super(x, heed, 5)
    return np.concatenate([header, packing.fifth_bits_k(q), packing.halves(_low(q), 32)], axis=1)


def _super_scales(scale: Tensor, least: int) -> tuple[Tensor, Tensor]:
    """Scales [B, n] of sub-blocks as integers least … −least − 1 times one float16 a block: ([B, n], [B, 1])."""
    greatest = scale.gather(-1, scale.abs().argmax(-1, keepdim=True))
    unit = _half(greatest / least)
    return _over(scale, unit).round_().clamp_(least, -least - 1), unit


def _q6_k(x: Tensor, heed: Tensor | None) -> Bytes:
    parts = x.reshape(-1, 16)
    scale = signed_scale(parts, _weights(x, heed).reshape(-1, 16), -32).reshape(len(x), 16)
    integers, unit = _super_scales(scale, -128)
    q = _over(parts, (integers * unit).reshape(-1, 1)).round_().clamp_(-32, 31) + 32
    scales = integers.to(torch.int8).numpy().view(np.uint8)
    return np.concatenate(
        [packing.q6_bits(_bytes(q).reshape(len(x), SUPER)), scales, packing.half_bytes(unit.flatten().numpy())], axis=1
    )


def _iq4(x: Tensor, scale: Tensor) -> Bytes:
    """The nearest numbers of the codebook, [B, 32] from x [B, 32] and scales [B, 1]."""
    return _bytes(IQ4.nearest(_over(x, scale)))


def _iq4_nl(x: Tensor, heed: Tensor | None) -> Bytes:
    scale = _half(codebook_scale(x, _weights(x, heed), IQ4))
    return np.concatenate([packing.half_bytes(scale.numpy()), packing.halves(_iq4(x, scale[:, None]), 16)], axis=1)


def _iq4_xs(x: Tensor, heed: Tensor | None) -> Bytes:
    parts = x.reshape(-1, 32)
    scale = codebook_scale(parts, _weights(x, heed).reshape(-1, 32), IQ4).reshape(len(x), 8)
    integers, unit = _super_scales(scale, -32)
    q = _iq4(parts, (integers * unit).reshape(-1, 1))
    header = [packing.half_bytes(unit.flatten().numpy()), packing.iq4_xs_scales(_bytes(integers + 32))]
    return np.concatenate([*header, packing.halves(q, 16).reshape(len(x), -1)], axis=1)


QUANTIZERS: Mapping[str, Callable[[Tensor, Tensor | None], Bytes]] = {
    "q8_0": _q8_0, "q4_0": _q4_0, "q4_1": _q4_1, "q5_0": _q5_0, "q5_1": _q5_1, "q4_k": _q4_k, "q5_k": _q5_k,
    "q6_k": _q6_k, "iq4_nl": _iq4_nl, "iq4_xs": _iq4_xs,
}  # fmt: skip
"""Type → quantizer of blocks float32 [B, block] with their importance [B, block]."""
