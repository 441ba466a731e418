"""Changes that make a request cheaper, from those that cost nothing to those that cost answers' quality."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Any

from pocketport.profiles.timeline.description import ModelDescription
from pocketport.profiles.timeline.handset import configurations
from pocketport.profiles.timeline.setting import Scenario, Setting

LADDER = ("q8_0", "q6_k", "q5_k_m", "q4_k_m", "q4_k_s", "iq4_xs", "q3_k_m", "q3_k_s", "q2_k")
"""llama.cpp's mixtures, from the widest; of equal bytes one is enough (``q4_0`` and ``iq4_nl`` take those of ``q4_k_s``)."""
TOGETHER = 3  # changes of one remedy at most
FREE, COMPILE, ROUNDING, PIXELS = 1.0, 2.0, 4.0, 6.0
"""What a change costs: nothing but code; another toolchain; rounding errors; what the model does not get to see."""


@dataclass(frozen=True)
class Change:
    """One change.

    Attributes:
        what: in words, as an imperative.
        cost: in the order of which remedies are tried.
        fields: of the `Setting`, by name; changes of one field exclude one another.
        views: into how many pictures the image is cut; None: as it was.
    """

    what: str
    cost: float
    fields: Mapping[str, Any] = field(default_factory=dict)
    views: int | None = None

    @property
    def kind(self) -> str:
        """What it changes."""
        return next(iter(self.fields), "views")


def remedies(model: ModelDescription, scenario: Scenario, setting: Setting) -> Iterator[tuple[Change, ...]]:
    """Sets of changes of different kinds, cheapest first; of equal cost the one with fewer changes."""
    single = list(changes(model, scenario, setting))
    sets = [
        chosen
        for count in range(1, TOGETHER + 1)
        for chosen in combinations(single, count)
        if len({change.kind for change in chosen}) == count
    ]
    yield from sorted(sets, key=lambda chosen: (sum(change.cost for change in chosen), len(chosen)))


def changes(model: ModelDescription, scenario: Scenario, setting: Setting) -> Iterator[Change]:
    """Everything that can be changed alone."""
    needed, image = scenario.tokens + scenario.answer_tokens, scenario.image
    if not setting.sequential and image is not None:
        yield Change("load the language model after the vision tower is released", FREE, {"sequential": True})
    if setting.context > needed:
        yield Change(f"make the key-value cache for {needed} tokens, not {setting.context}", FREE, {"context": needed})
    names = list(configurations())
    for step, name in enumerate(names[names.index(setting.configuration) + 1 :], 1):
        how = configurations()[name].name
        yield Change(f"set llama.cpp up otherwise: {how}", FREE + step / 10, {"configuration": name})
    if image is not None and any(setting.units[part] == "cpu" for part in model.encoders):
        units = setting.on("npu", *model.encoders).units
        yield Change(f"run {' and '.join(model.encoders)} on the NPU", COMPILE, {"units": units})
    if setting.cache_bits > 8:
        yield Change("keep the key-value cache in 8 bits", ROUNDING / 2, {"cache_bits": 8})
    now = "f16" if setting.schemes["language"] in ("fp16", "float") else setting.schemes["language"]
    bytes_ = model.parts["language"].gguf
    if now in bytes_:
        fewer = [scheme for scheme in LADDER if bytes_.get(scheme, bytes_[now]) < bytes_[now]]
        for step, scheme in enumerate(fewer, 1):
            schemes = setting.encoded(scheme, "language").schemes
            yield Change(f"give the language model fewer bits: {scheme}", ROUNDING * step, {"schemes": schemes})
    for views in range(scenario.views - 1, 0, -1):
        lost = 1 - views / scenario.views
        yield Change(f"cut the image into {views} views, not {scenario.views}", PIXELS * (1 + lost), views=views)


def applied(chosen: tuple[Change, ...], scenario: Scenario, setting: Setting) -> tuple[Scenario, Setting]:
    """Scenario and setting with all of a set's changes."""
    for change in chosen:
        setting = replace(setting, **change.fields)
        if change.views is not None and scenario.image is not None:
            scenario = replace(scenario, image=scenario.image.with_views(change.views))
    return scenario, setting
