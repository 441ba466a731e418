"""What a chip takes, as tested data: each backend's ``legality.toml``."""

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
    """Weight formats taken at one width: dtype, granularities (``t``, ``c``, ``b``), block sizes, symmetry."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    dtype: str
    granularities: tuple[str, ...]
    blocks: tuple[int, ...] = ()
    symmetric: bool = True


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
        norm_scale_dtype: dtype in which gamma of LayerNorm/RMSNorm is quantized, or ``float``.
        norm_bias_dtype: the same for beta.
        ops: ONNX op types that are taken. An op not listed is refused.
        refused: op type → why and fix, for the ops worth a better message than "not listed".
        float_ops: op types whose inputs and outputs stay float even in a quantized graph.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    tested_with: str
    defaults: Mapping[str, str]
    activations: Mapping[str, ActivationRule] = {}
    weights: Mapping[str, WeightRule] = {}
    norm_scale_dtype: str = "float"
    norm_bias_dtype: str = "float"
    ops: frozenset[str] = frozenset()
    refused: Mapping[str, OpRule] = {}
    float_ops: frozenset[str] = frozenset()

    @classmethod
    def read(cls, path: Path) -> "Legality":
        """Read a ``legality.toml``; InputError names what is wrong in it."""
        try:
            return cls.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
        except (OSError, tomllib.TOMLDecodeError, ValidationError) as error:
            raise InputError(f"not a legality file: {error}", where=str(path), fix="correct the file") from error
