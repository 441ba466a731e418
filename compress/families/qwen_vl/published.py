"""The vision tower within a published checkpoint: where its tensors lie, and small models cut out of large ones."""

import re
from collections.abc import Iterable, Sequence

import onnx_ir as ir

from pocketport.compress.families.qwen_vl.config import VisionConfig
from pocketport.compress.sources.source import Source
from pocketport.errors import InputError

PATHS = ("visual", "model.visual")  # as Qwen2-VL and Qwen2.5-VL were published, as transformers 4.52 and later write
LAYER_LISTS = ("fullatt_block_indexes", "deepstack_visual_indexes")


def visual_path(names: Iterable[str]) -> str:
    """The path of the vision tower among a checkpoint's tensor names.

    Raises:
        InputError: it is at no known place.
    """
    known = set(names)
    for path in PATHS:
        if f"{path}.patch_embed.proj.weight" in known:
            return path
    raise InputError(
        f"the checkpoint has no patch embedding; looked for {', '.join(f'{p}.patch_embed.proj.weight' for p in PATHS)}",
        where="tensors",
        fix="give a checkpoint with its vision tower",
    )


def telling_blocks(config: VisionConfig) -> tuple[int, ...]:
    """The layers that a check must not leave out: the first of each kind, those of the deepstack, and the last."""
    kinds = [config.sees_windows(i) for i in range(config.depth)]
    return tuple(sorted({kinds.index(kind) for kind in kinds} | {*config.deepstack, config.depth - 1}))


def cut_vision(source: Source, visual: str, blocks: Sequence[int]) -> Source:
    """The same model with these layers of its vision tower only, counted anew.

    Args:
        source: the published model.
        visual: `visual_path` of it.
        blocks: which layers stay, ascending.
    """
    places = {old: new for new, old in enumerate(blocks)}
    vision = dict(source.config["vision_config"])
    vision |= {key: [places[i] for i in vision[key] if i in places] for key in LAYER_LISTS if vision.get(key)}
    vision["depth"] = len(blocks)
    pattern = re.compile(re.escape(f"{visual}.blocks.") + r"(\d+)(\..*)")
    tensors: dict[str, ir.TensorProtocol] = {}
    for name, tensor in source.tensors.items():
        found = pattern.fullmatch(name)
        if found is None:
            tensors[name] = tensor
        elif int(found[1]) in places:
            tensors[f"{visual}.blocks.{places[int(found[1])]}{found[2]}"] = tensor
    return Source(source.path, {**source.config, "vision_config": vision}, tensors)
