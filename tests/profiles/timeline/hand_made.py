"""A device and a model of round numbers, so that every sum can be done on paper."""

import pytest

from pocketport.profiles.device import Figure
from pocketport.profiles.timeline import handset as handsets
from pocketport.profiles.timeline.description import ImagePlan, ModelDescription, PartDescription, Weights
from pocketport.profiles.timeline.handset import Configuration, Handset
from pocketport.profiles.timeline.setting import Scenario

GB = 10**9


def figure(value: float) -> Figure:
    return Figure(value=value, source="by hand", certainty="certain")


def part(elements: int, **more: object) -> PartDescription:
    fields: dict[str, object] = {
        "linear": Weights(elements=elements, channels=0), "table": Weights(elements=0, channels=0), "other": 0,
        "rows": 100, "row_macs": 1e9, "pair_macs": 0.0, "ops": 1, "arena_bytes": 0, "io_bytes": 0,
    }  # fmt: skip
    return PartDescription.model_validate({**fields, **more})


MODEL = ModelDescription(
    name="hand-made",
    parts={
        "vision": part(GB // 2),
        "language": part(2 * GB, last_macs=0, cache_elements=50_000, gguf={"q4_k_m": GB}, gguf_table={"q4_k_m": 0}),
    },
)
IMAGE = ImagePlan(width=10, height=10, views=4, patches=100, tokens=80)
PHONE = Handset(
    name="Hand", target="qualcomm/sm8650", cpu_gflops=figure(1000), storage_gbps=figure(2),
    app_memory_gb=figure(1.5), paging_gbps=figure(0.1), serialize_limit_mb=figure(2048),
)  # fmt: skip
ASKED = Scenario(IMAGE, prompt_tokens=20, answer_tokens=10)


def set_up_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """llama.cpp's set-ups: 10 % of everything as is, and a quarter when tuned."""
    made = {
        name: Configuration(
            name=name, vision_share=figure(v), language_share=figure(v), bandwidth_share=figure(v), spread=figure(2)
        )
        for name, v in (("generic", 0.1), ("tuned", 0.25))
    }
    monkeypatch.setattr(handsets, "configurations", lambda: made)
    monkeypatch.setattr("pocketport.profiles.timeline.remedies.configurations", lambda: made)
