"""What a chip takes, as data: the model of every backend's ``legality.toml``."""

import tomllib
from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from pocketport.errors import InputError


class ActivationRule(BaseModel):
    """Integer type of activations at one width. `softmax` is a fixed (scale, zero point) where a kernel demands one."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    dtype: str
    symmetric: bool
    softmax: tuple[float, int] | None = None


class WeightRule(BaseModel):
    """Weight formats taken at one width.

    Attributes:
        dtype: integer type, a key of ``INTEGER_RANGES``.
        granularities: those of ``t``, ``c`` and ``b`` that are taken.
        blocks: block sizes taken along the input dimension.
        symmetric: zero point 0; otherwise each scale has its own zero point.
        block_scale_levels: where not 0, a block's scale must be k / levels of its channel's greatest, k = 1 … levels
            (16: Qualcomm's low-power block quantization).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    dtype: str
    granularities: tuple[str, ...]
    blocks: tuple[int, ...] = ()
    symmetric: bool = True
    block_scale_levels: int = 0


class PaletteRule(BaseModel):
    """Palettes that are taken: weights as indices into tables of float16 numbers.

    Attributes:
        bits: widths of an index; its table has 2^bits numbers.
        grouped: whether groups of output channels may have a table each, else one serves the whole weight.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    bits: tuple[int, ...]
    grouped: bool = True


class TableRule(BaseModel):
    """Format of lookup tables (embeddings), which are Gathered: ``c`` has a scale a row, ``t`` one for all.

    The dtype ``activation`` means the activations' own format and encoding: looking up is only data movement then.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    dtype: str = "int8"
    granularity: str = "c"


class CacheRule(BaseModel):
    """Key-value caches in integers that are taken: their `bits`, and `why` no others."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    bits: tuple[int, ...] = ()
    why: str = "none was tried with this toolchain"


class OpRule(BaseModel):
    """Why an op can't be taken and what to do, or that it stays float under quantization."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    why: str
    fix: str


class Legality(BaseModel):
    """One backend's legality.

    Attributes:
        tested_with: toolchain name and version that the data was tested with.
        defaults: component role (``vision connector embed prefill decode main head``) → scheme text.
        activations: bits (``"8"``, ``"16"``) → rule. Absent width: not legal.
        weights: bits (``"2"`` … ``"8"``) → rule.
        palettes: which palettes of weights are taken; None: none.
        tables: how lookup tables (embeddings) are written.
        cache: integers that a key-value cache may hold.
        float_bits: widths of float activations that are taken.
        norm_scale_dtype: dtype in which gamma of LayerNorm/RMSNorm is quantized, or ``float``.
        norm_bias_dtype: the same for beta; ``int32`` has scale s_x · s_gamma.
        ops: ONNX op types that are taken. An op not listed is refused.
        refused: op type → why and fix, for the ops worth a better message than "not listed".
        float_ops: op types whose inputs and outputs stay float even in a quantized graph.
        integer_ops: where not empty, only activations that these op types read become integers; for chips that compute
            all else in float, where further rounding would cost accuracy and buy nothing.
        scaled_inputs: whether the 8-bit input of a layer may be divided by a factor a channel before it is rounded, which
            takes a float multiplication; see `compress.pivot.input_scaling`.
        online_rotations: whether a layer's input may be rotated in float before it is rounded; see
            `compress.conditioning.rotate_online`.
        low_rank: whether a layer may have a low-rank correction beside it, whose output is added to the layer's in float; see
            `compress.pivot.low_rank`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    tested_with: str
    defaults: Mapping[str, str]
    activations: Mapping[str, ActivationRule] = {}
    weights: Mapping[str, WeightRule] = {}
    palettes: PaletteRule | None = None
    tables: TableRule = TableRule()
    cache: CacheRule = CacheRule()
    float_bits: tuple[int, ...] = (16, 32)
    norm_scale_dtype: str = "float"
    norm_bias_dtype: str = "float"
    ops: frozenset[str] = frozenset()
    refused: Mapping[str, OpRule] = {}
    float_ops: frozenset[str] = frozenset()
    integer_ops: frozenset[str] = frozenset()
    scaled_inputs: bool = False
    online_rotations: bool = False
    low_rank: bool = False

    @classmethod
    def read(cls, path: Path) -> "Legality":
        """Read a ``legality.toml``; InputError names what is wrong in it."""
        try:
            return cls.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
        except (OSError, tomllib.TOMLDecodeError, ValidationError) as error:
            raise InputError(f"not a legality file: {error}", where=str(path), fix="correct the file") from error
