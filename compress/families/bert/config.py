"""Configuration of a BERT encoder, read from the published ``config.json``."""

from pydantic import BaseModel, ConfigDict, ValidationError

from pocketport.compress.sources.source import Source
from pocketport.errors import InputError


class BertConfig(BaseModel):
    """The keys that decide the graph."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    vocab_size: int
    max_position_embeddings: int
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    hidden_act: str = "gelu"
    position_embedding_type: str = "absolute"

    @classmethod
    def of(cls, source: Source) -> "BertConfig":
        """A source's configuration; InputError when it describes a variant that is not supported."""
        try:
            config = cls.model_validate(source.config)
        except ValidationError as error:
            raise InputError(
                f"not a BERT configuration: {error}", where=f"{source.path}, config.json", fix="give a BERT checkpoint"
            ) from error
        if config.hidden_act != "gelu" or config.position_embedding_type != "absolute":
            raise InputError(
                f"hidden_act {config.hidden_act!r} with {config.position_embedding_type!r} positions is not supported",
                where=f"{source.path}, config.json",
                fix="give a BERT with gelu and absolute positions, or export the model to ONNX",
            )
        return config
