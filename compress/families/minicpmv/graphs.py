"""The five component graphs of a MiniCPM-V model, 1.0 to 4.5 (arXiv 2408.01800, section 3).

They are laid down in ``docs/architecture.md``. Weights keep the published checkpoint's names, and its tensors go
into the graphs as they lie on disk.
"""

from collections.abc import Callable, Mapping

import onnx_ir as ir

from pocketport.compress.builder import GraphBuilder, Weight
from pocketport.compress.families.minicpmv.config import MiniCPMVConfig
from pocketport.compress.families.minicpmv.language_graphs import build_decode, build_embed, build_prefill
from pocketport.compress.families.minicpmv.parts import Parts, StaticShape
from pocketport.compress.families.minicpmv.vision_graphs import build_connector, build_vision

COMPONENTS: Mapping[str, Callable[[Parts], None]] = {
    "vision": build_vision,
    "connector": build_connector,
    "embed": build_embed,
    "prefill": build_prefill,
    "decode": build_decode,
}


def build_graphs(state: Mapping[str, Weight], config: MiniCPMVConfig, shape: StaticShape) -> dict[str, ir.Model]:
    """The component graphs by name, in the order in which data flows.

    Args:
        state: checkpoint tensors by name; they may be lazy.
        config: the checkpoint's ``config.json``.
        shape: the static lengths.

    Raises:
        InputError: a tensor of the family is missing from `state`, or has another shape than `config` says.
    """
    graphs = {}
    for name, build in COMPONENTS.items():
        parts = Parts(GraphBuilder(name), state, config, shape)
        build(parts)
        graphs[name] = parts.g.finish()
    return graphs
