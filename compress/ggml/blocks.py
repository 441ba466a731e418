"""ggml's block formats that can be written: levels, the search for scales, bit layouts (``ggml-common.h``)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pocketport.compress.ggml import packing, scales
from pocketport.compress.ggml.levels import Codebook, Levels, Whole
from pocketport.compress.ggml.scales import BlockScales
from pocketport.compress.ggml.types import TYPES

Bytes = NDArray[np.uint8]
Searched = Callable[[Tensor, Tensor | None], BlockScales]
"""Of blocks float32 [B, block] with their importance [B, block]."""

ONE = (1, 1)
IQ4 = Codebook([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113])


@dataclass(frozen=True)
class BlockForm:
    """One block format.

    Attributes:
        kind: the ggml type.
        part: columns that share a scale.
        levels: what codes stand for before they are scaled.
        steps: the least and the greatest step of a scale and, in types with offsets, of an offset; both 1 where a block
            is one part.
        searched: finds scales.
        packed: bytes [B, bytes of a block] from scales and codes uint8 [B, block].
    """

    kind: str
    part: int
    levels: Levels
    steps: tuple[tuple[int, int], ...]
    searched: Searched
    packed: Callable[[BlockScales, Bytes], Bytes]

    @property
    def block(self) -> int:
        """Columns of a block."""
        return TYPES[self.kind].block

    def codes(self, x: Tensor, found: BlockScales) -> Tensor:
        """Codes of the nearest numbers to x [B, block], in any dtype."""
        scale, offset = found.scale[..., None], found.offset
        grouped = x.reshape(*scale.shape[:2], -1)
        grouped = grouped if offset is None else grouped + offset[..., None]
        return self.levels.codes(scales.over(grouped, scale)).reshape(x.shape)

    def dequantized(self, codes: Tensor, found: BlockScales) -> Tensor:
        """What codes [B, block] stand for, float32."""
        scale, offset = found.scale[..., None], found.offset
        values = self.levels.of(codes).reshape(*scale.shape[:2], -1) * scale
        return (values if offset is None else values - offset[..., None]).reshape(codes.shape)


def _units(found: BlockScales, *, added: bool = False) -> Bytes:
    """The bytes of the units [B, 2 F]; `added`: offsets are stored as what is added."""
    units = found.units
    if added:
        units = torch.cat([units[:, :1], -units[:, 1:]], 1)
    return packing.half_bytes(units.flatten().cpu().numpy()).reshape(len(units), -1)


def _steps(found: BlockScales, kind: int = 0, shift: int = 0) -> Bytes:
    """Steps of the scales (0) or of the offsets (1), [B, n], modulo 256."""
    array: Bytes = (found.steps[:, kind] + shift).to(torch.int16).cpu().numpy().astype(np.uint8)
    return array


def _q8_0(found: BlockScales, q: Bytes) -> Bytes:
    signed = np.subtract(q, 127, dtype=np.int16).astype(np.int8)
    return np.concatenate([_units(found), signed.view(np.uint8)], axis=1)


def _four_bits(found: BlockScales, q: Bytes) -> Bytes:
    return np.concatenate([_units(found, added=True), packing.halves(q, 16)], axis=1)


def _five_bits(found: BlockScales, q: Bytes) -> Bytes:
    return np.concatenate([_units(found, added=True), packing.fifth_bits(q), packing.halves(q, 16)], axis=1)


def _q2_k(found: BlockScales, q: Bytes) -> Bytes:
    steps = np.bitwise_or(_steps(found), _steps(found, 1) << 4, dtype=np.uint8)
    return np.concatenate([steps, packing.fields(q, 32, 2, 4), _units(found)], axis=1)


def _q3_k(found: BlockScales, q: Bytes) -> Bytes:
    steps = packing.q3_k_scales(_steps(found, shift=32))
    codes = [packing.fields(q, 32, 1, 8, above=2), packing.fields(q, 32, 2, 4)]
    return np.concatenate([*codes, steps, _units(found)], axis=1)


def _super_header(found: BlockScales) -> list[Bytes]:
    return [_units(found), packing.six_bit_pairs(_steps(found), _steps(found, 1))]


def _q4_k(found: BlockScales, q: Bytes) -> Bytes:
    return np.concatenate([*_super_header(found), packing.halves(q, 32)], axis=1)


def _q5_k(found: BlockScales, q: Bytes) -> Bytes:
    fifth = packing.fields(q, 32, 1, 8, above=4)
    return np.concatenate([*_super_header(found), fifth, packing.halves(q, 32)], axis=1)


def _q6_k(found: BlockScales, q: Bytes) -> Bytes:
    codes = [packing.halves(q, 64), packing.fields(q, 32, 2, 4, above=4)]
    return np.concatenate([*codes, _steps(found), _units(found)], axis=1)


def _iq4_xs(found: BlockScales, q: Bytes) -> Bytes:
    header = [_units(found), packing.iq4_xs_scales(_steps(found, shift=32))]
    return np.concatenate([*header, packing.halves(q, 16)], axis=1)


def _symmetric(kind: str, levels: Levels, packed: Callable[[BlockScales, Bytes], Bytes]) -> BlockForm:
    return BlockForm(kind, 32, levels, (ONE,), partial(scales.symmetric, levels=levels), packed)


def _affine(kind: str, greatest: int, packed: Callable[[BlockScales, Bytes], Bytes]) -> BlockForm:
    found = partial(scales.affine, greatest=greatest)
    return BlockForm(kind, 32, Whole(0, greatest), (ONE, ONE), found, packed)


def _symmetric_super(
    kind: str, part: int, levels: Levels, least: int, packed: Callable[[BlockScales, Bytes], Bytes]
) -> BlockForm:
    found = partial(scales.symmetric_super, levels=levels, part=part, least=least)
    return BlockForm(kind, part, levels, ((least, -least - 1),), found, packed)


def _affine_super(
    kind: str, part: int, greatest: int, most: int, packed: Callable[[BlockScales, Bytes], Bytes]
) -> BlockForm:
    found = partial(scales.affine_super, greatest=greatest, part=part, most=most)
    return BlockForm(kind, part, Whole(0, greatest), ((0, most), (0, most)), found, packed)


FORMS: Mapping[str, BlockForm] = {
    form.kind: form
    for form in (
        BlockForm("q8_0", 32, Whole(-127, 127), (ONE,), partial(scales.extreme, greatest=127), _q8_0),
        _symmetric("q4_0", Whole(-8, 7), _four_bits),
        _affine("q4_1", 15, _four_bits),
        _symmetric("q5_0", Whole(-16, 15), _five_bits),
        _affine("q5_1", 31, _five_bits),
        _affine_super("q2_k", 16, 3, 15, _q2_k),
        _symmetric_super("q3_k", 16, Whole(-4, 3), -32, _q3_k),
        _affine_super("q4_k", 32, 15, 63, _q4_k),
        _affine_super("q5_k", 32, 31, 63, _q5_k),
        _symmetric_super("q6_k", 16, Whole(-32, 31), -128, _q6_k),
        _symmetric("iq4_nl", IQ4, _four_bits),
        _symmetric_super("iq4_xs", 32, IQ4, -32, _iq4_xs),
    )
}
"""Type → its format."""
