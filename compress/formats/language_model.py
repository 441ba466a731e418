"""The forward pass of a decoder over any set of ops, for formats that hold a graph of their runtime's own ops."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from pocketport.compress.bundle import ModelBundle
from pocketport.compress.families.decoder.config import FULL, SLIDING, DecoderConfig
from pocketport.compress.families.registry import host_of
from pocketport.compress.sources.source import Source
from pocketport.errors import InputError

T = TypeVar("T")

TABLE = ".embed_tokens.weight"


@dataclass(frozen=True)
class LanguageModel:
    """The decoder of a bundle.

    Attributes:
        config: its configuration.
        prefix: path of its module in the checkpoint (``model``, ``llm.model``).
        head: name of the vocabulary projection's weight, which is the embedding table's where they are tied.
    """

    config: DecoderConfig
    prefix: str
    head: str

    @classmethod
    def of(cls, bundle: ModelBundle) -> "LanguageModel":
        """The decoder whose graphs a bundle holds."""
        table = next(name for name in bundle["embed"].graph.graph.initializers if name.endswith(TABLE))
        logits = next(v for v in bundle["decode"].graph.graph.outputs if v.name == "logits").producer()
        assert logits is not None and logits.inputs[1] is not None
        return cls(host_of(bundle).config, table.removesuffix(TABLE), str(logits.inputs[1].name))

    @property
    def table(self) -> str:
        """Name of the embedding table."""
        return f"{self.prefix}{TABLE}"

    def layer(self, index: int) -> str:
        """Path of one layer."""
        return f"{self.prefix}.layers.{index}"


class DecoderOps(Protocol[T]):
    """What a runtime's ops compute, on hidden states [batch, tokens, hidden]. Weights go by their published names."""

    def rms_norm(self, x: T, name: str) -> T:
        """RMSNorm with the weight of this name, over the last axis."""
        ...

    def add_and_norm(self, x: T, added: T, name: str) -> tuple[T, T]:
        """x + added, and its RMSNorm."""
        ...

    def scaled(self, x: T, value: float) -> T:
        """x·value; x itself where the value is 1."""
        ...

    def attention(self, x: T, layer: int) -> T:
        """Attention with its projections and its cache."""
        ...

    def gated_mlp(self, x: T, path: str) -> T:
        """down(activation(gate(x))·up(x))."""
        ...


def last_hidden(ops: DecoderOps[T], model: LanguageModel, x: T) -> T:
    """Embeddings → what the vocabulary projection takes."""
    config = model.config
    normed = ops.rms_norm(x, f"{model.layer(0)}.input_layernorm.weight")
    before_mlp = "pre_feedforward_layernorm" if config.sandwich_norms else "post_attention_layernorm"
    for i in range(config.num_hidden_layers):
        path = model.layer(i)
        added = ops.attention(normed, i)
        if config.sandwich_norms:
            added = ops.rms_norm(added, f"{path}.post_attention_layernorm.weight")
        x, normed = ops.add_and_norm(x, ops.scaled(added, config.residual_scale), f"{path}.{before_mlp}.weight")
        added = ops.gated_mlp(normed, f"{path}.mlp")
        if config.sandwich_norms:
            added = ops.rms_norm(added, f"{path}.post_feedforward_layernorm.weight")
        last = i + 1 == config.num_hidden_layers
        following = f"{model.prefix}.norm" if last else f"{model.layer(i + 1)}.input_layernorm"
        x, normed = ops.add_and_norm(x, ops.scaled(added, config.residual_scale), f"{following}.weight")
    return ops.scaled(normed, config.logits_scale)


def check_decoder(name: str, source: Source, model: LanguageModel) -> None:
    """The decoder must be of a form that `DecoderOps` cover.

    Args:
        name: of the format.
        source: the checkpoint.
        model: its decoder.

    Raises:
        InputError: it has layers without softmax attention, or positions that are not one number for each token.
    """
    config = model.config
    problems = {
        "layer_types": sorted(set(config.layer_types) - {FULL, SLIDING}),
        "rope_scaling, mrope_section": list(config.rope.sections),
        "partial_rotary_factor": [config.rope.width] if config.rope.width != config.head_dim else [],
    }
    for key, found in problems.items():
        if found:
            raise InputError(
                f"{name} has no place for {found}",
                where=f"{source.path}, config.json, {key}",
                fix="write gguf, gptq or compressed-tensors instead",
            )


def projections(path: str) -> Sequence[str]:
    """Paths of the query, key and value projections of an attention module."""
    return [f"{path}.{name}_proj" for name in ("q", "k", "v")]
