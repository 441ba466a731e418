"""Which type each matrix of a language model gets in llama.cpp's named mixtures (``src/llama-quant.cpp``)."""

from collections.abc import Mapping
from dataclasses import dataclass

from pocketport.compress.ggml.types import TYPES

BASE: Mapping[str, str] = {
    "q4_k_m": "q4_k", "q4_k_s": "q4_k", "q5_k_m": "q5_k", "q6_k": "q6_k", "q8_0": "q8_0", "q4_0": "q4_0",
    "iq4_nl": "iq4_nl", "iq4_xs": "iq4_xs", "q3_k_m": "q3_k", "q3_k_s": "q3_k", "q2_k": "q2_k",
}  # fmt: skip
"""Mixture → the type of most of its matrices."""

FLOATS = ("f16", "bf16", "f32")
FILE_TYPES: Mapping[str, int] = {
    "f32": 0, "f16": 1, "q4_0": 2, "q8_0": 7, "q2_k": 10, "q3_k_s": 11, "q3_k_m": 12, "q4_k_s": 14, "q4_k_m": 15,
    "q5_k_m": 17, "q6_k": 18, "iq4_nl": 25, "iq4_xs": 30, "bf16": 32,
}  # fmt: skip
"""``general.file_type`` (``llama.h``)."""

SMALLER_BLOCKS: Mapping[str, str] = {
    "q2_k": "q4_0", "q3_k": "q4_0", "q4_k": "q5_0", "q5_k": "q5_1", "q6_k": "q8_0", "iq4_xs": "iq4_nl",
}  # fmt: skip
"""What a type of blocks of 256 becomes where 32 divides the columns and 256 does not."""

MANY_PER_GROUP = 4  # queries that share a key-value head; the values are then few, and more bits for them cost little


@dataclass(frozen=True)
class Shape:
    """What the mixtures ask of a model.

    Attributes:
        layers: how many.
        group: queries that share a key-value head.
        tied: the embedding table is the vocabulary projection too.
    """

    layers: int
    group: int
    tied: bool


def mixed_type(mixture: str, name: str, columns: int, shape: Shape) -> tuple[str, str]:
    """The type of one matrix, and why.

    Args:
        mixture: one of `BASE`.
        name: in the GGUF file.
        columns: of the matrix.
        shape: of the model.
    """
    wanted, why = _wanted(mixture, name, columns, shape)
    return with_fallback(wanted, columns, f"{why} of llama.cpp's {mixture.upper()}")


def with_fallback(kind: str, columns: int, why: str) -> tuple[str, str]:
    """The type, or what llama.cpp puts in its place where its blocks do not divide the columns."""
    if columns % TYPES[kind].block == 0:
        return kind, why
    smaller = SMALLER_BLOCKS.get(kind, kind)
    chosen = smaller if columns % TYPES[smaller].block == 0 else "f16"
    return chosen, f"blocks of {TYPES[kind].block} do not divide its {columns} columns: {chosen} rather than {kind}"


def _wanted(mixture: str, name: str, columns: int, shape: Shape) -> tuple[str, str]:
    base = BASE[mixture]
    if name == "output.weight" or (name == "token_embd.weight" and shape.tied):
        kept = base == "q8_0" or columns % TYPES[base].block
        return "q8_0" if kept else "q6_k", "the vocabulary projection"
    parts = name.split(".")
    if parts[0] != "blk":
        return base, "the base type"
    more = _more(mixture, parts[2], int(parts[1]), shape)
    return (base, "the base type") if more is None else (more, "one of the matrices with more bits")


def _more(mixture: str, matrix: str, layer: int, shape: Shape) -> str | None:
    """The type of a matrix that gets more bits than most, None for the others."""
    few_values, early = shape.group >= MANY_PER_GROUP, layer < shape.layers // 8
    if mixture in ("q4_k_m", "q5_k_m"):
        return "q6_k" if matrix in ("attn_v", "ffn_down") and _more_bits(layer, shape.layers) else None
    if mixture == "q4_k_s":
        return "q5_k" if (matrix == "attn_v" and layer < 4) or (matrix == "ffn_down" and early) else None
    if mixture in ("iq4_nl", "iq4_xs"):
        return "q5_k" if (matrix == "attn_v" and few_values) or (matrix == "ffn_down" and early) else None
    if mixture == "q3_k_m" and matrix in ("attn_v", "ffn_down", "attn_output"):
        first = {"attn_v": 2, "ffn_down": shape.layers // 16}.get(matrix, 0)
        return "q5_k" if layer < first else "q4_k"
    if mixture == "q2_k" and matrix in ("attn_v", "ffn_down", "attn_output"):
        return "q4_k" if matrix == "attn_v" and few_values else "q3_k"
    return None


def _more_bits(layer: int, layers: int) -> bool:
    """The first and last eighth of the layers, and every third between them."""
    eighth = layers // 8
    return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2
