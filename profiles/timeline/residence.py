"""What is in memory during each phase, what has to be paged for it, and what an NPU's runtime refuses to hold."""

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from pocketport.diagnostics import Diagnostic, Severity
from pocketport.profiles.timeline.description import ModelDescription, Part
from pocketport.profiles.timeline.handset import Handset
from pocketport.profiles.timeline.setting import FLOAT_BITS, Scenario, Setting
from pocketport.profiles.units import format_quantity

RANGE_BYTES = 8  # of the values of a token and head, where the cache holds integers: see `compress.integer_cache`
FLOAT_WIDTHS = {"cpu": 2, "npu": 1}  # of activations, in 16-bit numbers


@dataclass(frozen=True)
class Resident:
    """Memory of one phase, bytes.

    Attributes:
        weights: of the parts that are loaded.
        cache: the key-value cache.
        activations: buffers of the parts that are loaded; inputs and outputs among them.
    """

    weights: int = 0
    cache: int = 0
    activations: int = 0

    @property
    def total(self) -> int:
        """All of it; the runtime's own memory is not known, and not counted."""
        return self.weights + self.cache + self.activations


def weight_bytes(model: ModelDescription, part: Part, setting: Setting) -> int:
    """Weights of a part as they are loaded; prefill and decode on an NPU are two copies unless a binary shares them."""
    once = model.parts[part].weight_bytes(setting.schemes[part])
    twice = part == "language" and setting.units[part] == "npu" and not setting.shared_weights
    return 2 * once if twice else once


def cache_bytes(model: ModelDescription, scenario: Scenario, setting: Setting) -> int:
    """The key-value cache, made as long as it will be needed before the first token."""
    return column_bytes(model, setting) * max(setting.context, scenario.tokens + scenario.answer_tokens)


def column_bytes(model: ModelDescription, setting: Setting) -> int:
    """What the cache takes for one token, ranges of values included where it holds integers."""
    language = model.parts["language"]
    elements, ranges = language.cache_elements, 0
    if setting.cache_bits < FLOAT_BITS and language.shape is not None:
        ranges = RANGE_BYTES * elements // (2 * language.shape["head_size"])
    return elements * setting.cache_bits // 8 + ranges


def resident(
    model: ModelDescription, loaded: Collection[Part], scenario: Scenario, setting: Setting, *, decoding: bool = False
) -> Resident:
    """Memory with these parts loaded; `decoding`: the prompt's buffers are gone."""
    activations = 0
    for part in loaded:
        described = model.parts[part]
        step = decoding and part == "language"
        buffers = described.step_arena_bytes if step else described.arena_bytes + described.io_bytes
        activations += FLOAT_WIDTHS[setting.units[part]] * buffers
    cache = cache_bytes(model, scenario, setting) if "language" in loaded else 0
    return Resident(sum(weight_bytes(model, part, setting) for part in loaded), cache, activations)


def paged_bytes(own: Resident, waiting: Resident, handset: Handset, passes: int) -> int:
    """What has to come back from storage during a phase, where an app's memory is limited; 0 where no limit is known.

    Of parts that ran already the system takes the pages first, at no cost. Parts that are yet to run compete with the
    running one: what is beyond the limit comes back once, at most all of the running weights. Where the running part
    alone is beyond it, that excess comes back in every pass over the weights.

    Args:
        own: of the part that runs.
        waiting: of the parts that are loaded and yet to run.
        handset: the device.
        passes: over the weights: views, prompts, or tokens.
    """
    if handset.app_memory_gb is None or handset.paging_gbps is None:
        return 0
    limit = int(handset.app_memory_gb.value * 1e9)
    always = min(max(own.total - limit, 0), own.weights)
    once = min(max(own.total + waiting.total - limit, 0), own.weights) - always
    return once + passes * always


def limits(model: ModelDescription, handset: Handset, setting: Setting) -> Iterator[Diagnostic]:
    """What the NPU's compiler or runtime refuses, before anything is compiled."""
    chip, bounds = handset.chip, []
    if handset.serialize_limit_mb is not None:
        bounds.append((handset.serialize_limit_mb, Severity.WARNING, "serialize", "is written as one graph"))
    if chip.context_limit_mb is not None:
        bounds.append((chip.context_limit_mb, Severity.ERROR, "context", "is loaded as one context"))
    for part in _on_npu(model, setting):
        size = weight_bytes(model, part, setting)
        for figure, severity, code, what in bounds:
            limit = figure.value * 2**20
            if size > limit:
                yield Diagnostic(
                    f"memory.{code}-limit", severity, f"{model.name}, {part}, on {handset.name}",
                    f"its weights are {format_quantity(size, 'bytes')}; at most {format_quantity(limit, 'bytes')} {what}"
                    f" ({figure.source})",
                    f"split it into {math.ceil(size / limit)} contexts, give it fewer bits, or leave it on the processor",
                )  # fmt: skip


def _on_npu(model: ModelDescription, setting: Setting) -> Sequence[Part]:
    return [part for part in model.parts if setting.units[part] == "npu"]
