"""Figures 6 and 7 of MiniCPM-V's paper (arXiv 2408.01800, section 5) beside our timeline's.

Of every number it is said whether it was fitted, and with which parameter, or predicted. The paper does not print the
image's size. At 1344×1344 (10 views) its 3.7 s for an image would be 3.7 times the float16 peak of the phone's
processor, at 448×448 (one view) 37 % of it: one view is taken.

    python benchmarks/paper_figures.py [--json FILE]

Takes seconds: the model's description (``benchmarks/data/minicpm-llama3-v-2.5.json``) is `describe`'s of the preset.
"""

import argparse
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from pocketport.profiles.timeline.description import ImagePlan, ModelDescription
from pocketport.profiles.timeline.handset import configurations, find_handset
from pocketport.profiles.timeline.setting import Scenario, Setting
from pocketport.profiles.timeline.timeline import Timeline, timeline

DESCRIPTION = Path(__file__).parent / "data" / "minicpm-llama3-v-2.5.json"
VIEW = ImagePlan(width=448, height=448, views=1, patches=1024, tokens=98)
XIAOMI, VIVO, MACBOOK = "Xiaomi 14 Pro", "vivo X100 Pro", "MacBook Pro M1"
GENERIC = Setting(configuration="generic", sequential=False)
SEQUENTIAL = Setting(configuration="generic")
NATIVE, TUNED = Setting(configuration="native"), Setting()
NPU = TUNED.on("npu", "vision", "connector")
FLOAT = GENERIC.encoded("fp16", "language")
LEFT = 1.0  # percent that a fitted parameter may be off before the file counts as not fitted


@dataclass(frozen=True)
class Published:
    """One number of the paper.

    Attributes:
        device, step: where it stands.
        setting: what that is in our terms.
        figure: of `Timeline.figures`; ``weights`` for what is loaded.
        value: seconds, tokens/s or GB.
        fitted: the parameter that was fitted to it; empty: predicted.
        note: what else is to be known.
    """

    device: str
    step: str
    setting: Setting
    figure: str
    value: float
    fitted: str = ""
    note: str = ""


PUBLISHED = (
    Published(XIAOMI, "as is", GENERIC, "image_encode", 45.2, "paging_gbps"),
    Published(XIAOMI, "as is", GENERIC, "encode_latency", 64.2, "generic.language_share"),
    Published(XIAOMI, "as is", GENERIC, "tokens_per_second", 1.3, "generic.bandwidth_share"),
    Published(XIAOMI, "sequential loading", SEQUENTIAL, "image_encode", 31.5, "generic.vision_share"),
    Published(XIAOMI, "sequential loading", SEQUENTIAL, "encode_latency", 50.5, "follows", "64.2 − (45.2 − 31.5)"),
    Published(XIAOMI, "native build", NATIVE, "encode_latency", 17.0, "native.vision_share"),
    Published(XIAOMI, "native build", NATIVE, "tokens_per_second", 3.2, "native.bandwidth_share"),
    Published(XIAOMI, "configuration search", TUNED, "image_encode", 3.7, "tuned.vision_share"),
    Published(XIAOMI, "configuration search", TUNED, "tokens_per_second", 8.2),
    Published(XIAOMI, "ViT on NPU", NPU, "image_encode", 1.3, note="the paper's may hold loading and the host's work"),
    Published(XIAOMI, "ViT on NPU", NPU, "encode_latency", 9.4),
    Published(VIVO, "configuration search", TUNED, "encode_latency", 13.9),
    Published(VIVO, "configuration search", TUNED, "tokens_per_second", 4.9),
    Published(MACBOOK, "configuration search", TUNED, "encode_latency", 10.4),
    Published(MACBOOK, "configuration search", TUNED, "tokens_per_second", 16.9,
              note="needs 78 GB/s; a base M1 has 68: hardly that chip's processor"),
    Published(XIAOMI, "Q4_K_M", SEQUENTIAL, "peak_memory", 5.0, note="“around 5G”; bounds app_memory_gb from below"),
    Published(XIAOMI, "fp16", FLOAT, "app_size", 16.5, note="“16~17G”"),
)  # fmt: skip
UNITS: Mapping[str, tuple[str, float]] = {
    "image_encode": ("s", 1e3), "encode_latency": ("s", 1e3), "tokens_per_second": ("tok/s", 1.0),
    "peak_memory": ("GB", 1e9), "app_size": ("GB", 1e9),
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """A published number and ours."""

    device: str
    step: str
    figure: str
    unit: str
    published: float
    ours: float
    low: float | None
    high: float | None
    error_percent: float
    origin: str
    note: str


def followed(model: ModelDescription, device: str, setting: Setting) -> Timeline:
    return timeline(model, find_handset(device), Scenario(VIEW), setting)


def rows(model: ModelDescription) -> list[Row]:
    found = []
    for p in PUBLISHED:
        figure = followed(model, p.device, p.setting).figures[p.figure]
        unit, scale = UNITS[p.figure]
        ours = figure.value / scale
        origin = (
            "predicted"
            if not p.fitted
            else f"fitted: {p.fitted}"
            if p.fitted != "follows"
            else "follows from those fitted"
        )
        low, high = (None if v is None else v / scale for v in (figure.low, figure.high))
        found.append(
            Row(p.device, p.step, p.figure, unit, p.value, ours, low, high, 100 * (ours / p.value - 1), origin, p.note)
        )
    return found


def refitted(model: ModelDescription) -> dict[str, tuple[float, float]]:
    """Fitted parameter → its value in the package, and the one that meets the paper's number exactly."""
    seconds = {name: figure.value / 1e3 for name, figure in followed(model, XIAOMI, SEQUENTIAL).figures.items()}
    speeds = {s.configuration: followed(model, XIAOMI, s).figures for s in (SEQUENTIAL, NATIVE, TUNED)}
    generic, native, tuned = (configurations()[name] for name in ("generic", "native", "tuned"))
    both = followed(model, XIAOMI, GENERIC).figures["image_encode"].value / 1e3 - seconds["image_encode"]
    paging = find_handset(XIAOMI).paging_gbps
    assert paging is not None
    return {
        "generic.vision_share": _scaled(generic.vision_share.value, seconds["image_encode"], 31.5),
        "generic.language_share": _scaled(generic.language_share.value, seconds["prefill"], 64.2 - 45.2),
        "generic.bandwidth_share": _scaled(
            generic.bandwidth_share.value, 1 / speeds["generic"]["tokens_per_second"].value, 1 / 1.3
        ),
        "native.vision_share": _scaled(
            native.vision_share.value, speeds["native"]["encode_latency"].value / 1e3, 17.0
        ),
        "native.bandwidth_share": _scaled(
            native.bandwidth_share.value, 1 / speeds["native"]["tokens_per_second"].value, 1 / 3.2
        ),
        "tuned.vision_share": _scaled(tuned.vision_share.value, speeds["tuned"]["image_encode"].value / 1e3, 3.7),
        "paging_gbps": _scaled(paging.value, both, 45.2 - 31.5),
    }  # fmt: skip


def _scaled(value: float, ours: float, published: float) -> tuple[float, float]:
    return value, value * ours / published


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="also write the rows there")
    arguments = parser.parse_args()
    model = ModelDescription.model_validate_json(DESCRIPTION.read_text("utf-8"))
    found, parameters = rows(model), refitted(model)
    for device in (XIAOMI, VIVO, MACBOOK):
        print(f"\n{device}")
        for row in found:
            if row.device == device:
                interval = "" if row.low is None or row.high is None else f"({row.low:.3g}–{row.high:.3g})"
                print(
                    f"  {row.step:<21}{row.figure:<19}{row.published:>6.1f} {row.unit:<6}ours {row.ours:>7.2f} {interval:<14}"
                    f"{row.error_percent:>+7.0f} %  {row.origin}{'; ' + row.note if row.note else ''}"
                )
    predicted = [row for row in found if row.origin == "predicted"]
    within = sum(
        row.low is not None and row.high is not None and row.low <= row.published <= row.high for row in predicted
    )
    ranged = sum(row.low is not None for row in predicted)
    print(f"\n{len(found)} numbers: {len(parameters)} parameters fitted to as many, {len(predicted)} predicted;")
    print(f"of {ranged} with an interval {within} lie in it.")
    for name, (now, best) in parameters.items():
        off = 100 * (now / best - 1)
        print(f"  {name:<26}{now:.4g}, exactly {best:.4g}{'  NOT FITTED' if abs(off) > LEFT else ''}")
    if arguments.json:
        document = {"rows": [asdict(row) for row in found], "parameters": parameters}
        arguments.json.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
