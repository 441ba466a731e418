"""What a timeline needs to know of a model: counts of weights and work, no graph and no checkpoint."""

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict

from pocketport.compress.schemes import Granularity, Scheme
from pocketport.errors import UsageError
from pocketport.suggest import nearest

Part: TypeAlias = Literal["vision", "connector", "language"]
PARTS: tuple[Part, ...] = ("vision", "connector", "language")
SCALE_BYTES, FLOAT_BYTES = 2, 2  # of quantized weights, and of what stays float
FLOAT_SCHEMES = ("float", "fp16")


class Weights(BaseModel):
    """Matrices of one kind.

    Attributes:
        elements: of all of them together.
        channels: their output channels together.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    elements: int
    channels: int

    def bytes(self, scheme: Scheme) -> int:
        """As encoded, with a float16 scale a channel or block, or tables; float16 where the scheme quantizes no weights."""
        if scheme.weight_bits is None:
            return self.elements * FLOAT_BYTES
        scales = {
            Granularity.TENSOR: 0,
            Granularity.CHANNEL: self.channels,
            Granularity.BLOCK: self.elements // max(scheme.block, 1),
            Granularity.PALETTE: (1 << scheme.weight_bits) * (self.channels // scheme.group if scheme.group else 0),
        }[scheme.granularity]
        return (self.elements * scheme.weight_bits + 7) // 8 + scales * SCALE_BYTES


class PartDescription(BaseModel):
    """One part of a model; prefill and decode are one, for they share their weights.

    Attributes:
        linear: matrices that every run reads.
        table: what is looked up row by row (the embedding table).
        other: elements of norms, biases and positions.
        gguf: bytes that every run reads in llama.cpp's file by its mixture; empty where there is no such file.
        gguf_table: the same of the table.
        rows: patches or prompt tokens of the static graph.
        row_macs: multiply-accumulates a row, in linear layers and convolutions.
        pair_macs: multiply-accumulates a row and attended row, in attention.
        last_macs: multiply-accumulates for the last row alone (the vocabulary projection).
        ops: ops that an NPU compiler would be left with, in the static graph.
        arena_bytes: activations of the static graph in 16-bit numbers.
        io_bytes: inputs and outputs of the static graph in 16-bit numbers; caches not among them.
        features: of the static graph, as `GraphFeatures.to_json` writes them: what predictors for NPUs take.
        shape: of the decoder, the fields of `LanguageShape`.
        cache_elements: of the key-value cache, a token.
        step_arena_bytes: activations of one decoding step.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    linear: Weights
    table: Weights
    other: int
    gguf: Mapping[str, int] = {}
    gguf_table: Mapping[str, int] = {}
    rows: int
    row_macs: float
    pair_macs: float
    last_macs: float = 0
    ops: int
    arena_bytes: int
    io_bytes: int
    features: Mapping[str, Any] | None = None
    shape: Mapping[str, int] | None = None
    cache_elements: int = 0
    step_arena_bytes: int = 0

    def macs(self, rows: int, attended: int | None = None) -> float:
        """Multiply-accumulates of one run over `rows`, each attending to `attended` rows (None: to one another)."""
        return rows * self.row_macs + rows * (rows if attended is None else attended) * self.pair_macs + self.last_macs

    def streamed_bytes(self, scheme: str) -> int:
        """Constants that every run reads.

        Raises:
            UsageError: the scheme is neither in the grammar of `Scheme` nor a mixture that this part has.
        """
        if scheme in self.gguf:
            return self.gguf[scheme]
        return self.linear.bytes(self._scheme(scheme)) + self.other * FLOAT_BYTES

    def weight_bytes(self, scheme: str) -> int:
        """All constants: what is loaded and what ships; raises as `streamed_bytes`."""
        table = self.gguf_table[scheme] if scheme in self.gguf else self.table.bytes(self._scheme(scheme))
        return self.streamed_bytes(scheme) + table

    def _scheme(self, text: str) -> Scheme:
        if text in FLOAT_SCHEMES:
            return Scheme.parse("float")
        try:
            return Scheme.parse(text)
        except UsageError as error:
            known = [*self.gguf, "w4b32a16", "w8a16", "fp16"]
            raise UsageError(
                f"{text!r} is not a scheme of this part", where="scheme", fix=nearest(text, known)
            ) from error


class ImagePlan(BaseModel):
    """What an image of one size becomes.

    Attributes:
        width, height: of the image in pixels.
        views: pictures that the vision tower sees, the overview among them.
        patches: of the largest view.
        tokens: that stand for the image in the prompt, markers among them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    width: int
    height: int
    views: int
    patches: int
    tokens: int

    def with_views(self, views: int) -> "ImagePlan":
        """The same image cut into fewer pictures, at as many tokens a picture."""
        return self.model_copy(update={"views": views, "tokens": round(self.tokens * views / self.views)})


class ModelDescription(BaseModel):
    """A model as a timeline sees it.

    Attributes:
        name: of the preset or the run.
        parts: by name, in the order of a request; a plain language model has ``language`` alone.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_name: str = "pocketport.model-description/1"
    name: str
    parts: Mapping[Part, PartDescription]

    @property
    def encoders(self) -> list[Part]:
        """The parts that see, in order."""
        return [part for part in PARTS if part in self.parts and part != "language"]
