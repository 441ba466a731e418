"""Configuration of a Whisper, and of the tokens that its answers begin with, from the published files."""

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pocketport.compress.families.vision.config import ACTIVATIONS
from pocketport.errors import InputError, UsageError
from pocketport.suggest import nearest

WIDEST = 1 << 24  # channels
TRANSCRIBE = "transcribe"
Model = TypeVar("Model", bound=BaseModel)


class WhisperConfig(BaseModel):
    """The keys that decide the graphs. What a published file leaves out has the value that transformers gives it."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    d_model: int = Field(gt=0, le=WIDEST)
    encoder_layers: int = Field(gt=0, le=4096)
    encoder_attention_heads: int = Field(gt=0)
    encoder_ffn_dim: int = Field(gt=0, le=WIDEST)
    decoder_layers: int = Field(gt=0, le=4096)
    decoder_attention_heads: int = Field(gt=0)
    decoder_ffn_dim: int = Field(gt=0, le=WIDEST)
    vocab_size: int = Field(gt=0)
    num_mel_bins: int = Field(80, gt=0, le=WIDEST)
    max_source_positions: int = Field(1500, gt=0, le=WIDEST)
    max_target_positions: int = Field(448, gt=1, le=WIDEST)
    activation_function: str = "gelu"
    tie_word_embeddings: bool = True

    @property
    def frames(self) -> int:
        """Frames of the log-mel spectrogram: the second convolution halves them."""
        return 2 * self.max_source_positions

    @property
    def head(self) -> int:
        """Channels of a head of the decoder (d)."""
        return self.d_model // self.decoder_attention_heads

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> "WhisperConfig":
        """A published ``config.json``; InputError names the key whose value is missing, wrong or not supported."""
        result = validated(cls, config, "config.json")
        problems = {
            f"activation_function: {result.activation_function!r} is not supported": result.activation_function
            not in ACTIVATIONS,
            "encoder_attention_heads does not divide d_model": result.d_model % result.encoder_attention_heads != 0,
            "decoder_attention_heads does not divide d_model": result.d_model % result.decoder_attention_heads != 0,
        }
        for why, found in problems.items():
            if found:
                raise InputError(why, where="config.json", fix="export the model to ONNX")
        return result


class Generation(BaseModel):
    """Which tokens come first, and which never: of ``generation_config.json``.

    Attributes:
        decoder_start_token_id: the first token.
        lang_to_id: ``<|en|>`` … → token; empty for models of one language.
        task_to_id: ``transcribe``, ``translate`` → token.
        no_timestamps_token_id: the token behind which no timestamps come.
        forced_decoder_ids: (place, token) behind the first, of older files without those tables.
        suppress_tokens: never chosen.
        begin_suppress_tokens: not chosen first.
        language, task: what is taken when the caller says nothing.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    decoder_start_token_id: int = Field(50257, ge=0)
    lang_to_id: dict[str, int] = {}
    task_to_id: dict[str, int] = {}
    no_timestamps_token_id: int | None = Field(None, ge=0)
    forced_decoder_ids: list[tuple[int, int | None]] = []
    suppress_tokens: list[int] = []
    begin_suppress_tokens: list[int] = []
    language: str | None = None
    task: str = TRANSCRIBE

    @classmethod
    def from_hf(cls, generation: Mapping[str, Any], vocabulary: int) -> "Generation":
        """The keys of ``generation_config.json``; those of ``config.json`` where a checkpoint has no such file.

        Raises:
            InputError: a key has a wrong value, or a token that must be given is not in the vocabulary.
        """
        result = validated(cls, generation, "generation_config.json")
        given = [*result.lang_to_id.items(), *result.task_to_id.items()]
        given.extend(("forced_decoder_ids", token or 0) for _, token in result.forced_decoder_ids)
        given.append(("decoder_start_token_id", result.decoder_start_token_id))
        given.append(("no_timestamps_token_id", result.no_timestamps_token_id or 0))
        for key, token in given:
            if not 0 <= token < vocabulary:
                raise InputError(
                    f"{key}: {token} is not in the vocabulary of {vocabulary}",
                    where="generation_config.json",
                    fix="give the file that belongs to this checkpoint",
                )
        return result

    def language_id(self, language: str) -> int:
        """The token of ``en`` or ``<|en|>``; UsageError when the model does not have it."""
        return _chosen(self.lang_to_id, language if language in self.lang_to_id else f"<|{language}|>", "language")

    def prefix(self, language: int | None, task: str | None) -> list[int]:
        """The tokens that an answer begins with.

        Args:
            language: its token; None for models of one language.
            task: ``transcribe`` or ``translate``; None: what the file says.

        Raises:
            UsageError: the model does not have this task.
        """
        tokens = [self.decoder_start_token_id]
        if language is not None:
            tokens.append(language)
        elif not self.lang_to_id and not self.task_to_id:
            tokens.extend(token for _, token in self.forced_decoder_ids if token is not None)
        if self.task_to_id or task not in (None, TRANSCRIBE):
            tokens.append(_chosen(self.task_to_id, task or self.task, "task"))
        last = self.no_timestamps_token_id
        return tokens if last in (None, tokens[-1]) else [*tokens, last]


def _chosen(tokens: Mapping[str, int], name: str, kind: str) -> int:
    if name not in tokens:
        fix = nearest(name, tokens) if tokens else f"give no {kind}: the model has one only"
        raise UsageError(f"the model has no {kind} {name!r}", where=kind, fix=fix)
    return tokens[name]


def validated(kind: type[Model], keys: Mapping[str, Any], file: str) -> Model:
    """The keys of a published file as a model; InputError names the first one that is wrong. Null is left out."""
    try:
        return kind.model_validate({key: value for key, value in keys.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise InputError(f"{key}: {first['msg']}", where=file, fix="give the published file") from error
