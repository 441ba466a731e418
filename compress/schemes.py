"""The scheme grammar: how the numbers of a tensor are written, one notation for all targets.

``w<bits>[b<block>|t|c|p[<channels>]]`` then ``a<bits>``, ``fp16`` or ``fp32``::

    w8a8        8-bit weights per channel (the default granularity), 8-bit activations
    w8a16       8-bit weights per channel, 16-bit activations
    w4b32a16    4-bit weights in blocks of 32 along the input dimension, 16-bit activations
    w4cfp16     4-bit weights per output channel, float16 activations
    w8tfp32     8-bit weights per tensor, float32 activations
    w4pfp16     4-bit indices into a palette: one table of 16 numbers for the whole weight
    w3p16fp16   3-bit indices, a table of 8 numbers for every 16 output channels
    float       nothing is quantized
"""

import re
from dataclasses import dataclass
from enum import StrEnum

from pocketport.errors import UsageError


class Granularity(StrEnum):
    """What shares one scale, or one table."""

    TENSOR = "t"
    CHANNEL = "c"
    BLOCK = "b"
    PALETTE = "p"


_PATTERN = re.compile(
    r"w(?:(?P<bits>[1-8]|16)(?:(?P<kind>[tc])|b(?P<block>[1-9]\d*))?|(?P<index>[123468])(?P<palette>p)(?P<group>[1-9]\d*)?)"
    r"(?:a(?P<abits>8|16)|(?P<float>fp16|fp32))"
)


@dataclass(frozen=True)
class Scheme:
    """A parsed scheme.

    Attributes:
        weight_bits: bits of one weight, or None where weights stay float.
        granularity: what shares a scale; with PALETTE, weights are indices into tables.
        block: weights of a block along the input dimension (BLOCK granularity only), else 0.
        activation_bits: bits of one activation, or None where activations stay float.
        float_bits: width of the float type computed in when activations are not quantized (16 or 32).
        group: output channels that share a table (PALETTE granularity only), 0 where one serves all.
    """

    weight_bits: int | None
    granularity: Granularity = Granularity.CHANNEL
    block: int = 0
    activation_bits: int | None = None
    float_bits: int = 32
    group: int = 0

    @classmethod
    def parse(cls, text: str) -> "Scheme":
        """Parse the grammar of the module's docstring; UsageError if `text` is not in it."""
        if text == "float":
            return cls(weight_bits=None)
        match = _PATTERN.fullmatch(text)
        if match is None:
            raise UsageError(
                f"{text!r} is not a scheme",
                where=f"scheme {text!r}",
                fix="write it as w8a8, w8a16, w4b32a16, w4cfp16, w4p16fp16 or float: w<bits>[b<block>|t|c|p[<channels>]] "
                "then a<bits>|fp16|fp32; palettes have 1, 2, 3, 4, 6 or 8 bits",
            )
        granularity = Granularity.BLOCK if match["block"] else Granularity(match["kind"] or match["palette"] or "c")
        return cls(
            weight_bits=int(match["bits"] or match["index"]),
            granularity=granularity,
            block=int(match["block"] or 0),
            activation_bits=int(match["abits"]) if match["abits"] else None,
            float_bits=16 if match["float"] == "fp16" else 32,
            group=int(match["group"] or 0),
        )

    def __str__(self) -> str:
        """The canonical spelling: `Scheme.parse(str(s)) == s`."""
        if self.weight_bits is None:
            return "float"
        kind = f"{self.granularity.value}{self.block or self.group or ''}"
        kind = "" if kind == "c" and self.activation_bits is not None else kind
        tail = f"a{self.activation_bits}" if self.activation_bits else f"fp{self.float_bits}"
        return f"w{self.weight_bits}{kind}{tail}"
