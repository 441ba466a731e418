"""ggml's tensor types: number, name, weights and bytes of a block (``ggml.h``, ``ggml-common.h``)."""

from collections.abc import Mapping
from dataclasses import dataclass

from pocketport.errors import InputError


@dataclass(frozen=True)
class GgmlType:
    """One type.

    Attributes:
        code: its number in GGUF files.
        name: lower case, as in `PackedWeight.type`.
        block: weights that share a block, along a tensor's last dimension.
        size: bytes of a block.
    """

    code: int
    name: str
    block: int
    size: int

    def row_bytes(self, columns: int) -> int:
        """Bytes of a row of whole blocks."""
        return columns // self.block * self.size


TYPES: Mapping[str, GgmlType] = {
    name: GgmlType(code, name, block, size)
    for name, code, block, size in (
        ("f32", 0, 1, 4), ("f16", 1, 1, 2), ("bf16", 30, 1, 2), ("f64", 28, 1, 8),
        ("i8", 24, 1, 1), ("i16", 25, 1, 2), ("i32", 26, 1, 4), ("i64", 27, 1, 8),
        ("q4_0", 2, 32, 18), ("q4_1", 3, 32, 20), ("q5_0", 6, 32, 22), ("q5_1", 7, 32, 24),
        ("q8_0", 8, 32, 34), ("q8_1", 9, 32, 36),
        ("q2_k", 10, 256, 84), ("q3_k", 11, 256, 110), ("q4_k", 12, 256, 144), ("q5_k", 13, 256, 176),
        ("q6_k", 14, 256, 210), ("q8_k", 15, 256, 292),
        ("iq4_nl", 20, 32, 18), ("iq4_xs", 23, 256, 136),
        ("iq2_xxs", 16, 256, 66), ("iq2_xs", 17, 256, 74), ("iq2_s", 22, 256, 82),
        ("iq3_xxs", 18, 256, 98), ("iq3_s", 21, 256, 110), ("iq1_s", 19, 256, 50), ("iq1_m", 29, 256, 56),
        ("tq1_0", 34, 256, 54), ("tq2_0", 35, 256, 66), ("mxfp4", 39, 32, 17),
    )
}  # fmt: skip
"""Name → type. The repacked types that older files had (numbers 31 to 38 but 34 and 35) are gone from the format."""

_BY_CODE = {kind.code: kind for kind in TYPES.values()}


def type_of_code(code: int, where: str) -> GgmlType:
    """The type of a number.

    Raises:
        InputError: there is none; `where` says in which file and tensor.
    """
    if code not in _BY_CODE:
        raise InputError(
            f"its type number {code} is not known",
            where=where,
            fix=f"convert it to one of {', '.join(TYPES)}",
        )
    return _BY_CODE[code]
