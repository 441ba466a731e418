"""The five component graphs of MiniCPM-V 4.6 and 4.7.

They are laid down in ``docs/architecture.md``. Weights keep the published checkpoint's names, and its tensors go
into the graphs as they lie on disk.
"""

from collections.abc import Mapping

import onnx_ir as ir

from pocketport.compress.builder import GraphBuilder, Weight
from pocketport.compress.families.decoder.graphs import DecoderParts, decoder_components
from pocketport.compress.families.minicpmv4_6.config import MiniCPMV46Config
from pocketport.compress.families.minicpmv4_6.parts import Parts, StaticShape
from pocketport.compress.families.minicpmv4_6.vision_graphs import build_connector, build_vision

LANGUAGE, HEAD = "model.language_model", "lm_head"


def build_graphs(state: Mapping[str, Weight], config: MiniCPMV46Config, shape: StaticShape) -> dict[str, ir.Model]:
    """The component graphs by name, in the order in which data flows.

    Args:
        state: checkpoint tensors by name; they may be lazy.
        config: the checkpoint's ``config.json``.
        shape: the static lengths.

    Raises:
        InputError: a tensor of the family is missing from `state`, or has another shape than `config` says.
    """
    graphs = {}
    for name, build in (("vision", build_vision), ("connector", build_connector)):
        parts = Parts(GraphBuilder(name), state, config, shape)
        build(parts)
        graphs[name] = parts.g.finish()
    decoder = config.decoder()
    language = decoder_components(
        lambda name: DecoderParts(GraphBuilder(name), state, decoder, LANGUAGE, HEAD, shape.prompt, shape.cache)
    )
    return {**graphs, **language}
