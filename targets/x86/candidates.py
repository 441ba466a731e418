"""Which settings are worth trying: threads first, then one change at a time to the best, then the changes that paid together.

A full grid of these fields has thousands of points for differences of a percent; their effects mostly add up.
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import psutil
from pydantic import BaseModel

from pocketport.targets.x86.settings import (
    ONNX,
    OnnxRuntimeSettings,
    OpenVinoSettings,
    Settings,
    engine_defaults,
    own_defaults,
    thread_counts,
)
from pocketport.workers import processors

Fields = TypeVar("Fields", bound=BaseModel)


def first_round(kinds: Sequence[str]) -> list[Settings]:
    """Every engine's own defaults, Pocketport's, and numbers of threads; the simplest first."""
    found = [own_defaults(kind) for kind in kinds]
    for kind in kinds:
        own = own_defaults(kind)
        for count in sorted(thread_counts(), reverse=True):
            found.append(own.model_copy(update={"threads": count}))
            if isinstance(own, OnnxRuntimeSettings) and count > 1:
                found.append(own.model_copy(update={"threads": count, "spinning": False}))
    return list(dict.fromkeys([*found, *(engine_defaults(kind) for kind in kinds)]))


def changes(settings: Settings, capabilities: Sequence[str] = ()) -> list[Settings]:
    """One field changed in each.

    Args:
        settings: what is changed.
        capabilities: precisions that OpenVINO computes in on this processor, as it names them: ``FP32``, ``BF16``, …
    """
    several = settings.threads is None or settings.threads > 1
    if isinstance(settings, OnnxRuntimeSettings):
        updates: list[Mapping[str, Any]] = [
            {"matmul_add_fusion": not settings.matmul_add_fusion}, {"optimization": "extended"}, {"optimization": "basic"},
            {"denormals_as_zero": True},
        ]  # fmt: skip
        updates += [{"parallel": True}] if several else []
        updates += [{"pinned": True}] if several and settings.threads is not None else []
    else:
        updates = [{"mode": "PERFORMANCE"}, {"denormals_as_zero": True}, {"mmap": False}]
        updates += [{"precision": name} for name, known in (("bf16", "BF16"), ("f16", "FP16")) if known in capabilities]
        updates += [{"pinned": not settings.pinned}, {"partitioner": "AUTO"}] if several else []
        updates += (
            [{"hyper_threading": False}]
            if several and len(processors()) > (psutil.cpu_count(logical=False) or 1)
            else []
        )
    found = [settings.model_copy(update=dict(update)) for update in updates]
    return [changed for changed in dict.fromkeys(found) if changed != settings]


def together(settings: Fields, changed: Sequence[Fields]) -> Fields:
    """`settings` with what is different in each of `changed`; of two values of one field, the first."""
    base, update = settings.model_dump(), dict[str, Any]()
    for other in changed:
        update |= {
            name: value for name, value in other.model_dump().items() if value != base[name] and name not in update
        }
    return settings.model_copy(update=update)


def frugal(settings: Settings) -> list[Settings]:
    """The same with less memory: without the second copy of the weights, without what is kept for the next run."""
    if isinstance(settings, OpenVinoSettings):
        return [] if settings.mmap else [settings.model_copy(update={"mmap": True})]
    return [
        settings.model_copy(update={"prepacking": False}),
        settings.model_copy(update={"arena": False, "memory_pattern": False}),
    ]


def kind_of(settings: Settings, kinds: Sequence[str]) -> str:
    """The artifact kind, among `kinds`, that the settings' engine runs."""
    return next(kind for kind in kinds if (kind == ONNX) == isinstance(settings, OnnxRuntimeSettings))
