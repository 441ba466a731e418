"""Peak memory of a model on a device, before anything is compiled: weights, key-value cache, activations, by phase."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from pocketport.profiles.arena import Arena, arena_of
from pocketport.profiles.cost import component_cost
from pocketport.profiles.measurement import Measurement, Provenance, ProvenanceKind

# What is in memory together when components are loaded one group after the other, in the order of a request.
GROUPS: Mapping[str, Sequence[str]] = {
    "vision": ("vision", "connector"),
    "language": ("embed", "prefill", "decode"),
}
STEP_NAMES: Mapping[str, str] = {"vision": "encode", "connector": "resample", "main": "run"}


@dataclass(frozen=True)
class ComponentMemory:
    """What one component takes: `weight_bytes` as encoded, and its arena."""

    weight_bytes: int
    arena: Arena


@dataclass(frozen=True)
class MemoryStep:
    """Memory during one step of a request, bytes.

    Attributes:
        phase: the group at work: ``vision``, ``language``, ``main``.
        name: ``load vision, connector``, ``encode``, ``release``, ``prefill``, ``decode``, ...
        weights: constants of all that is loaded.
        cache: the key-value cache.
        buffers: activations, inputs and outputs: the running component's alone, as tight as any allocator gets.
        idle: what a packed arena adds to it, and the buffers that loaded components keep while another one runs.
    """

    phase: str
    name: str
    weights: int
    cache: int
    buffers: int
    idle: int

    @property
    def low(self) -> int:
        """The least this step can take."""
        return self.weights + self.cache + self.buffers

    @property
    def high(self) -> int:
        """With packed arenas that stay allocated while their component is loaded."""
        return self.low + self.idle


@dataclass(frozen=True)
class MemoryPlan:
    """Memory over one request.

    Attributes:
        components: by name.
        steps: in the order of time; the report's chart.
        sequential: whether a group is released before the next one is loaded.
        overhead_bytes: the runtime's own memory, where it is known, else 0; in the peak, not in the steps.
    """

    components: Mapping[str, ComponentMemory]
    steps: tuple[MemoryStep, ...]
    sequential: bool
    overhead_bytes: int = 0

    def peak(self) -> Measurement:
        """``peak_memory`` in bytes: the highest step with packed arenas; `low` with the tightest."""
        runtime = "with" if self.overhead_bytes else "without"
        way = "components loaded one group after the other" if self.sequential else "all components resident"
        detail = f"encoded weights + key-value cache + activation lifetimes, {way}, {runtime} the runtime's own memory"
        low, high = (max(getattr(s, end) for s in self.steps) + self.overhead_bytes for end in ("low", "high"))
        return Measurement(
            "peak_memory", high, "bytes", Provenance(ProvenanceKind.PREDICTED, detail), low=low, high=high
        )


def memory_plan(
    components: Mapping[str, ir.Model],
    *,
    float_bits: int = 16,
    sequential: bool = True,
    overhead_bytes: int = 0,
) -> MemoryPlan:
    """Plan of one request: load, encode, (release,) load, prefill, decode; one run for a single component.

    Args:
        components: graphs by component name, as they are compiled; static shapes.
        float_bits: width of float tensors on the device.
        sequential: release vision before the language model is loaded, as MiniCPM-V does on phones
            (arXiv 2408.01800, section 5); else everything stays.
        overhead_bytes: the runtime's own memory.

    Raises:
        InputError: a shape is not static.
    """
    known = {
        name: ComponentMemory(
            component_cost(graph, float_bits=float_bits).weight_bytes, arena_of(graph, float_bits=float_bits)
        )
        for name, graph in components.items()
    }
    return MemoryPlan(known, tuple(_steps(known, sequential)), sequential, overhead_bytes)


def _steps(known: Mapping[str, ComponentMemory], sequential: bool) -> Iterator[MemoryStep]:
    groups = {phase: [name for name in group if name in known] for phase, group in GROUPS.items()}
    listed = {name for group in groups.values() for name in group}
    groups["main"] = [name for name in known if name not in listed]
    groups = {phase: group for phase, group in groups.items() if group}
    everything = [name for group in groups.values() for name in group]
    for index, (phase, group) in enumerate(groups.items()):
        loaded = group if sequential else everything
        if sequential or index == 0:
            yield _step(phase, f"load {', '.join(loaded)}", loaded, None, known)
        for name in group:
            yield _step(phase, STEP_NAMES.get(name, name), loaded, name, known)
        if sequential and index + 1 < len(groups):
            yield MemoryStep(phase, "release", 0, 0, 0, 0)


def _step(
    phase: str, title: str, loaded: Sequence[str], running: str | None, known: Mapping[str, ComponentMemory]
) -> MemoryStep:
    weights = sum(known[name].weight_bytes for name in loaded)
    cache = max(known[name].arena.cache_bytes for name in loaded)
    held = sum(known[name].arena.high + known[name].arena.io_bytes for name in loaded)
    active = known[running].arena if running else None
    buffers = active.low + active.io_bytes if active else 0
    return MemoryStep(phase, title, weights, cache, buffers, held - buffers)
