"""The timeline of one request, as MiniCPM-V's authors tell it (arXiv 2408.01800, section 5).

Load the vision tower, encode the overview and the slices, release it, load the language model, read visual and text tokens,
generate. With everything resident, loading comes first and nothing is released.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from pocketport.diagnostics import Diagnostic, Severity
from pocketport.profiles.measurement import Measurement, Provenance, ProvenanceKind
from pocketport.profiles.timeline import speed
from pocketport.profiles.timeline.description import ModelDescription, Part
from pocketport.profiles.timeline.handset import Handset
from pocketport.profiles.timeline.residence import Resident, limits, paged_bytes, resident, weight_bytes
from pocketport.profiles.timeline.setting import Scenario, Setting
from pocketport.profiles.units import format_quantity


@dataclass(frozen=True)
class Phase:
    """One step of the request.

    Attributes:
        name: ``load``, ``encode``, ``release``, ``prefill`` or ``decode``.
        parts: that it is about.
        unit: what runs it; ``storage`` while loading.
        start_ms: since the request.
        ms: how long it takes, paging apart.
        paged_bytes: that had to come back from storage meanwhile.
        paging_ms: and how long that took.
        memory: in use.
    """

    name: str
    parts: tuple[Part, ...]
    unit: str
    start_ms: float
    ms: Measurement
    paged_bytes: int
    paging_ms: Measurement | None
    memory: Resident

    @property
    def title(self) -> str:
        """For people: ``load vision, connector``."""
        return f"{self.name} {', '.join(self.parts)}" if self.name in ("load", "release", "encode") else self.name

    @property
    def times(self) -> list[Measurement]:
        """What it takes, paging included."""
        return [self.ms] if self.paging_ms is None else [self.ms, self.paging_ms]

    @property
    def end_ms(self) -> float:
        """Since the request."""
        return self.start_ms + sum(m.value for m in self.times)


@dataclass(frozen=True)
class Timeline:
    """One request on one device.

    Attributes:
        model, handset, scenario, setting: what it is about.
        phases: in the order of time.
    """

    model: ModelDescription
    handset: Handset
    scenario: Scenario
    setting: Setting
    phases: tuple[Phase, ...]

    @cached_property
    def figures(self) -> dict[str, Measurement]:
        """By name, those that budgets know and ``encode_latency``, the paper's own: encoding and prefill without loading."""
        encode = [m for p in self.phases if p.name == "encode" for m in p.times]
        prefill = [m for p in self.phases if p.name == "prefill" for m in p.times]
        loads = [p.ms for p in self.phases if p.name == "load"]
        decode = [p for p in self.phases if p.name == "decode"]
        inside = loads if self.setting.sequential and encode else []
        answer = [m for p in decode for m in p.times]
        found = {
            "load_time": _sum("load_time", loads),
            "prefill": _sum("prefill", prefill),
            "encode_latency": _sum("encode_latency", encode + prefill),
            "time_to_first_token": _sum("time_to_first_token", inside + encode + prefill),
            "request_latency": _sum("request_latency", inside + encode + prefill + answer),
            "tokens_per_second": _rate(_sum("decode", answer), self.scenario.answer_tokens),
            "peak_memory": self._memory("peak_memory", max(p.memory.total for p in self.phases)),
            "steady_memory": self._memory("steady_memory", decode[-1].memory.total),
            "app_size": self._memory(
                "app_size", sum(weight_bytes(self.model, part, self.setting) for part in self.model.parts)
            ),
            "npu_offload": self._offload(),
        }
        return {"image_encode": _sum("image_encode", encode), **found} if encode else found

    @cached_property
    def diagnostics(self) -> list[Diagnostic]:
        """What will page, and what an NPU refuses."""
        found = list(limits(self.model, self.handset, self.setting))
        for phase in self.phases:
            if phase.paged_bytes and phase.paging_ms is not None and self.handset.app_memory_gb is not None:
                found.append(
                    Diagnostic(
                        "memory.paging", Severity.WARNING, f"{self.model.name}, {phase.title}, on {self.handset.name}",
                        f"more is loaded than the {self.handset.app_memory_gb.value:g} GB of an app:"
                        f" {format_quantity(phase.paged_bytes, 'bytes')} come back from storage,"
                        f" {phase.paging_ms.value / 1e3:.1f} s",
                        "load parts one after the other, or give the language model fewer bits",
                    )
                )  # fmt: skip
        if self.handset.app_memory_gb is None:
            found.append(
                Diagnostic(
                    "memory.unknown-limit", Severity.NOTE, self.handset.name,
                    "nothing is published of what an app may hold there, so no paging is predicted",
                    "add app_memory_gb and paging_gbps to its file",
                )
            )  # fmt: skip
        return found

    def _memory(self, name: str, value: int) -> Measurement:
        detail = "encoded weights, key-value cache and activations, without the runtime's own memory"
        return Measurement(name, value, "bytes", Provenance(ProvenanceKind.PREDICTED, detail))

    def _offload(self) -> Measurement:
        """Share of the multiply-accumulates of encoding and prefill that the NPU does."""
        work = {part: _macs(self.model, part, self.scenario) for part in self.model.parts}
        share = sum(m for part, m in work.items() if self.setting.units[part] == "npu") / max(sum(work.values()), 1)
        detail = "share of multiply-accumulates up to the first token, by the placement of parts"
        return Measurement("npu_offload", share, "share", Provenance(ProvenanceKind.PREDICTED, detail))


def timeline(model: ModelDescription, handset: Handset, scenario: Scenario, setting: Setting) -> Timeline:
    """Follow a request.

    Args:
        model: see `describe`.
        handset: the device.
        scenario: the request; without an image only the language model is loaded.
        setting: how the model is set up.

    Raises:
        UsageError: an image for a model that sees none, a scheme or a placement that nothing is known of.
    """
    return Timeline(model, handset, scenario, setting, tuple(_phases(model, handset, scenario, setting)))


def _phases(model: ModelDescription, handset: Handset, scenario: Scenario, setting: Setting) -> Iterator[Phase]:
    encoders = tuple(model.encoders) if scenario.image is not None else ()
    everything: tuple[Part, ...] = (*encoders, "language")
    clock = 0.0

    def memory(loaded: Sequence[Part], decoding: bool = False) -> Resident:
        return resident(model, loaded, scenario, setting, decoding=decoding)

    def phase(
        name: str, parts: Sequence[Part], unit: str, ms: Measurement, loaded: Sequence[Part], passes: int, decoding: bool = False
    ) -> Phase:  # fmt: skip
        nonlocal clock
        waiting = [p for p in loaded if everything.index(p) > everything.index(parts[-1])]
        paged = paged_bytes(memory(parts, decoding), memory(waiting), handset, passes) if passes else 0
        made = Phase(
            name, tuple(parts), unit, clock, ms, paged, speed.paging(paged, handset) if paged else None,
            memory(loaded, decoding),
        )  # fmt: skip
        clock = made.end_ms
        return made

    def loading(parts: Sequence[Part], loaded: Sequence[Part]) -> Phase:
        size = sum(weight_bytes(model, part, setting) for part in parts)
        return phase("load", parts, "storage", speed.load(size, handset), loaded, 0)

    resident_parts = encoders if setting.sequential else everything
    if encoders:
        yield loading(resident_parts, resident_parts)
        for part in encoders:
            ms = speed.encode(part, model, handset, scenario, setting)
            yield phase("encode", (part,), setting.units[part], ms, resident_parts, scenario.views)
        if setting.sequential:
            yield phase("release", encoders, "storage", _nothing("release"), (), 0)
    if setting.sequential or not encoders:
        resident_parts = ("language",)
        yield loading(resident_parts, resident_parts)
    unit = setting.units["language"]
    yield phase("prefill", ("language",), unit, speed.prefill(model, handset, scenario, setting), resident_parts, 1)
    token, count = speed.decode(model, handset, scenario, setting), scenario.answer_tokens
    answer = _each(token, lambda v: count * v)
    yield phase("decode", ("language",), unit, answer, resident_parts, count, decoding=True)


def _macs(model: ModelDescription, part: Part, scenario: Scenario) -> float:
    if part == "language":
        return model.parts[part].macs(scenario.tokens)
    return scenario.views * model.parts[part].macs(scenario.image.patches) if scenario.image else 0.0


def _nothing(name: str) -> Measurement:
    return Measurement(name, 0.0, "ms", Provenance(ProvenanceKind.PREDICTED, "taken as free"), low=0.0, high=0.0)


def _each(m: Measurement, change: Callable[[float], float]) -> Measurement:
    low, high = (None if v is None else change(v) for v in (m.low, m.high))
    return Measurement(m.name, change(m.value), m.unit, m.provenance, low=low, high=high)


def _sum(name: str, parts: Sequence[Measurement]) -> Measurement:
    """End to end, as if all errors went the same way."""
    detail = "; ".join(dict.fromkeys(f"{m.name}: {m.provenance.detail}" for m in parts if m.value))
    low = sum(m.value if m.low is None else m.low for m in parts)
    high = sum(m.value if m.high is None else m.high for m in parts)
    provenance = Provenance(ProvenanceKind.PREDICTED, detail or "nothing to do")
    return Measurement(name, sum(m.value for m in parts), "ms", provenance, low=low, high=high)


def _rate(answer: Measurement, tokens: int) -> Measurement:
    assert answer.low is not None and answer.high is not None
    return Measurement(
        "tokens_per_second", 1e3 * tokens / answer.value, "tok/s", answer.provenance,
        low=1e3 * tokens / answer.high, high=1e3 * tokens / answer.low,
    )  # fmt: skip
