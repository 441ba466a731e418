"""The language model of MiniCPM-V as the shared decoder: embedding, prefill over the whole prompt, decode of one token."""

from pocketport.compress.families.decoder import graphs as decoder
from pocketport.compress.families.decoder.graphs import DecoderParts
from pocketport.compress.families.minicpmv.parts import Parts
from pocketport.compress.families.minicpmv.versions import decoder_of


def build_embed(parts: Parts) -> None:
    """Token ids to embeddings."""
    decoder.build_embed(_language(parts))


def build_prefill(parts: Parts) -> None:
    """The whole prompt at once."""
    decoder.build_prefill(_language(parts))


def build_decode(parts: Parts) -> None:
    """One token against the cache."""
    decoder.build_decode(_language(parts))


def _language(parts: Parts) -> DecoderParts:
    """The same graph under construction, seen as a decoder's."""
    config = decoder_of(parts.config)
    return DecoderParts(parts.g, parts.state, config, "llm.model", "llm.lm_head", parts.shape.prompt, parts.shape.cache)
