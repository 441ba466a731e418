"""The float graphs of a language model against transformers; of MiniCPM against its published equations in torch.

Large models are compared in part: a layer of each kind and the first words of the vocabulary, cut out of the
checkpoint and built by the same loader, so that memory stays at about one block.
"""

from collections.abc import Iterator
from math import prod

from pocketport.compress.bundle import ModelBundle
from pocketport.compress.families.decoder.config import DecoderConfig
from pocketport.compress.families.decoder.parity import Reference, compare_decoder, from_transformers
from pocketport.compress.families.decoder.published import cut_out, decoder_paths, telling_layers, text_only
from pocketport.compress.families.language.load import language_host, load_language
from pocketport.compress.families.language.minicpm_reference import minicpm_reference
from pocketport.compress.families.registry import Lengths, Pair
from pocketport.compress.families.transformers_reference import transformers_model
from pocketport.compress.graph import dimensions
from pocketport.compress.sources.source import Source

SMALL = 64 << 20  # parameters; a model of so many is compared whole
WORDS = 4096


def compare(bundle: ModelBundle, source: Source) -> Iterator[Pair]:
    """Pairs of prefill's and decode's logits, keys, values and tokens; see `compare_decoder`."""
    if sum(prod(dimensions(tensor)) for tensor in source.tensors.values()) > SMALL:
        config = DecoderConfig.from_hf(source.config)
        source = cut_out(source, *decoder_paths(source.tensors), telling_layers(config), WORDS)
        lengths = Lengths(prompt=int(bundle.config["prompt"]), cache=int(bundle.config["cache"]))
        bundle = load_language(source, bundle.name, lengths)

    def reference() -> Reference:
        plain = text_only(source)
        if plain.config["model_type"] == "minicpm":
            return minicpm_reference(plain)
        return from_transformers(transformers_model(plain, "AutoModelForCausalLM"))

    yield from compare_decoder(
        {component.name: component.graph for component in bundle}, language_host(bundle), reference
    )
