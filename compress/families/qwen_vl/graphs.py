"""The five component graphs of a Qwen-VL model.

They are laid down in ``docs/architecture.md``. Weights keep the published checkpoint's names, and its tensors go
into the graphs as they lie on disk; the patch embedding's kernel goes in as a matrix, ``<name>_flat``.
"""

from collections.abc import Callable, Mapping

import onnx_ir as ir

from pocketport.compress.builder import GraphBuilder, Weight
from pocketport.compress.families.decoder.graphs import DecoderParts, decoder_components
from pocketport.compress.families.decoder.published import decoder_paths
from pocketport.compress.families.qwen_vl.config import QwenVLConfig
from pocketport.compress.families.qwen_vl.parts import Parts, StaticShape
from pocketport.compress.families.qwen_vl.published import visual_path
from pocketport.compress.families.qwen_vl.vision_graphs import build_connector, build_vision

VISION: Mapping[str, Callable[[Parts], None]] = {"vision": build_vision, "connector": build_connector}


def build_graphs(state: Mapping[str, Weight], config: QwenVLConfig, shape: StaticShape) -> dict[str, ir.Model]:
    """The component graphs by name, in the order in which data flows.

    Args:
        state: checkpoint tensors by name; they may be lazy.
        config: the checkpoint's ``config.json``.
        shape: the static lengths.

    Raises:
        InputError: a tensor of the family is missing from `state`, or has another shape than `config` says.
    """
    visual = visual_path(state)
    graphs = {}
    for name, build in VISION.items():
        parts = Parts(GraphBuilder(name), state, config, visual, shape)
        build(parts)
        graphs[name] = parts.g.finish()
    prefix, head = decoder_paths(state)

    def language(component: str) -> DecoderParts:
        g, seen = GraphBuilder(component), len(config.vision.deepstack)
        return DecoderParts(g, state, config.decoder, prefix, head, shape.prompt, shape.cache, deepstack=seen)

    return {**graphs, **decoder_components(language)}
