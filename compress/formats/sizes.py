"""How many bytes a tensor takes in each scheme."""

import math
from collections.abc import Mapping

from pocketport.compress.schemes import Granularity, Scheme

GGML_BLOCKS: Mapping[str, tuple[int, int]] = {
    "f32": (1, 4), "f16": (1, 2), "bf16": (1, 2), "q8_0": (32, 34), "q4_0": (32, 18), "q4_1": (32, 20),
    "q5_0": (32, 22), "q5_1": (32, 24), "q2_k": (256, 84), "q3_k": (256, 110), "q4_k": (256, 144), "q5_k": (256, 176), "q6_k": (256, 210),
    "iq4_nl": (32, 18), "iq4_xs": (256, 136),
}  # fmt: skip
"""Type → (weights of a block, bytes of a block), from ggml's block structures."""


def scheme_bytes(scheme: str, shape: tuple[int, ...], *, symmetric: bool = True, source_bytes: int = 0) -> int:
    """Bytes of a tensor of `shape` in `scheme`, scales in its float type; ``source`` keeps `source_bytes`."""
    elements = math.prod(shape)
    if scheme == "source":
        return source_bytes
    if scheme in GGML_BLOCKS:
        weights, size = GGML_BLOCKS[scheme]
        return elements // weights * size
    parsed = Scheme.parse(scheme)
    if parsed.weight_bits is None:
        return source_bytes
    per_row = {Granularity.CHANNEL: 1, Granularity.BLOCK: -(-shape[-1] // (parsed.block or 1)), Granularity.TENSOR: 0}
    scales = max(1, elements // max(shape[-1], 1) * per_row[parsed.granularity])
    zeros = 0 if symmetric else math.ceil(scales * parsed.weight_bits / 8)
    return math.ceil(elements * parsed.weight_bits / 8) + scales * parsed.float_bits // 8 + zeros
