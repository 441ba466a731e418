"""The backends' contract. ``targets/example`` is a complete small backend: read it beside this file.

A Target is an identity, a Backend is behaviour. The pipeline calls, for each component:
``check`` (legality of the graph, before calibrating) → ``lower`` (pivot → what the vendor's compiler reads) →
``compile`` → ``execute`` (an Executor over the vendor's own runtime). ``lower``, ``compile`` and ``execute`` run
in a worker process (``pocketport.workers``): they take and return only paths, arrays and the dataclasses below.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeAlias, runtime_checkable

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from pocketport.diagnostics import Diagnostic
from pocketport.errors import UsageError
from pocketport.profiles.measurement import ExecutedBy, Measurement
from pocketport.targets.configuration import Configuration, SettingValues
from pocketport.targets.legality import Legality

Arrays: TypeAlias = Mapping[str, NDArray[np.generic]]

UNNAMED = "generic"
"""The SoC of a target that names none."""


@dataclass(frozen=True, order=True)
class Target:
    """Identity of what is compiled for: ``vendor/soc[@sdk]``."""

    vendor: str
    soc: str
    sdk: str = ""

    @classmethod
    def parse(cls, text: str) -> "Target":
        """Parse ``qualcomm/sm8650``, ``qualcomm/sm8650@2.51`` or ``x86`` (soc ``generic``)."""
        head, _, sdk = text.strip().lower().partition("@")
        vendor, _, soc = head.partition("/")
        if not vendor or "/" in soc:
            raise UsageError(
                f"{text!r} is not a target", where="--target", fix="write vendor/soc, e.g. qualcomm/sm8650"
            )
        return cls(vendor, soc or UNNAMED, sdk)

    def __str__(self) -> str:
        return f"{self.vendor}/{self.soc}" + (f"@{self.sdk}" if self.sdk else "")


@dataclass(frozen=True)
class CompileRequest:
    """One component to bring to one target.

    Attributes:
        component: its name (``vision`` … ``main``).
        pivot: the quantized QDQ ONNX file (or a float one, where the plan left it float).
        target: for whom.
        work: an empty directory for intermediate files.
        out: the directory that artifacts are written to.
    """

    component: str
    pivot: Path
    target: Target
    work: Path
    out: Path


@dataclass(frozen=True)
class Lowered:
    """The vendor compiler's input: one file or directory per artifact kind, and what lowering had to say."""

    paths: Mapping[str, Path]
    diagnostics: tuple[Diagnostic, ...] = ()


@dataclass(frozen=True)
class Artifact:
    """One output: a file or directory under the request's `out`.

    `kind` is ``qnn-context``, ``aimodel``, ``mlpackage``, ``tflite``, ``onnx`` or ``openvino-ir``.
    `primary` marks the one that the end-to-end task score runs on. `facts` are strings or numbers read back
    *from the artifact* (SoC, arch, spill bytes, …), never copied from the request.
    """

    path: Path
    kind: str
    bytes: int
    sha256: str
    primary: bool = True
    facts: Mapping[str, str | int | float] = field(default_factory=dict)


@dataclass(frozen=True)
class Offload:
    """How many ops of the lowered graph the accelerator takes; `elsewhere` names those it doesn't.

    `source` says who counted (``qnn compiler``, ``mediatek plugin (stand-in adapter)``, …). QuantizeLinear and
    DequantizeLinear do not count as ops.
    """

    npu_ops: int
    total_ops: int
    source: str
    elsewhere: tuple[str, ...] = ()


@dataclass(frozen=True)
class CompileResult:
    """What compiling gave. Estimates (``{"htp_us": ...}``) are the vendor compiler's own figures, by name."""

    artifacts: tuple[Artifact, ...]
    offload: Offload | None = None
    diagnostics: tuple[Diagnostic, ...] = ()
    estimates: Mapping[str, float] = field(default_factory=dict)


class Executor(Protocol):
    """A compiled component ready to run. Feeds and results are keyed by the pivot's input and output names.

    Floats go in and come out as float32, indices as int32, with the pivot's shapes, whatever the artifact uses inside.
    """

    def run(self, feeds: Arrays) -> dict[str, NDArray[np.generic]]:
        """Run once."""
        ...

    def close(self) -> None:
        """Free the runtime's memory."""
        ...


@runtime_checkable
class Backend(Protocol):
    """Behaviour of one vendor."""

    @property
    def vendor(self) -> str:
        """The vendor's name, the first half of its targets' identities."""
        ...

    @property
    def engines(self) -> Mapping[str, tuple[str, ExecutedBy]]:
        """artifact kind → (engine name, provenance ``measured`` or ``emulated``) used by `execute`."""
        ...

    def targets(self) -> Sequence[Target]:
        """Every SoC that this backend knows."""
        ...

    def legality(self, target: Target) -> Legality:
        """What the chip takes. Raises UsageError for an unknown SoC, with the nearest names."""
        ...

    def missing(self) -> tuple[Diagnostic, ...]:
        """Diagnostics (with the install command) for every part of the toolchain that is not installed."""
        ...

    def check(self, component: str, graph: ir.Model, target: Target) -> tuple[Diagnostic, ...]:
        """Ops and attributes of a *float* graph that the target can't take, by node. Never drops any."""
        ...

    def lower(self, request: CompileRequest) -> Lowered:
        """Write the vendor compiler's input into `request.work`."""
        ...

    def compile(self, request: CompileRequest, lowered: Lowered) -> CompileResult:
        """Run the vendor's compiler. Raises ToolchainError with the vendor's reason when it refuses."""
        ...

    def execute(self, artifact: Artifact, target: Target, pivot: Path) -> Executor:
        """Open an artifact in the vendor's own runtime on this host."""
        ...


@runtime_checkable
class EstimatingBackend(Protocol):
    """A backend whose compiler has a performance model of its own."""

    def estimate(self, request: CompileRequest, lowered: Lowered) -> Mapping[str, float]:
        """The compiler's figures by name (``sa8255p_us``, …), without executing. Raises ToolchainError."""
        ...


@runtime_checkable
class MeasuringBackend(Protocol):
    """A backend whose targets are this host's kind of machine."""

    def measure(
        self, component: str, artifact: Artifact, target: Target, feeds: Arrays, *, runs: int = 50, warmup: int = 5
    ) -> Sequence[Measurement]:
        """``<component>_latency`` (ms) and ``<component>_peak_memory`` (bytes); called in a fresh worker process."""
        ...


@dataclass(frozen=True)
class TuneJob:
    """One component whose engine's settings are looked for.

    Attributes:
        component: its name.
        artifacts: kind → file or directory; what they compute is the same.
        pivot: what they are checked against, run op by op.
        feeds: of one run; None: arbitrary ones.
        shapes: of inputs whose dimensions the files leave open.
    """

    component: str
    artifacts: Mapping[str, Path]
    pivot: Path
    feeds: Arrays | None = None
    shapes: Mapping[str, Sequence[int]] = field(default_factory=dict)


@runtime_checkable
class TuningBackend(Protocol):
    """A backend that can look for its engines' best settings on this host."""

    def tune(
        self, jobs: Sequence[TuneJob], target: Target, seconds: float, done: Callable[[str], None]
    ) -> Configuration:
        """Search within `seconds`; `done` is called with every component that is finished."""
        ...

    def tune_gguf(
        self, model: Path, programs: Path | None, tokens: tuple[int, int], seconds: float, begin: Callable[[str], None]
    ) -> Configuration:
        """Search llama.cpp's settings for a GGUF file.

        Args:
            model: the file.
            programs: the folder of llama.cpp's programs; None: the PATH.
            tokens: of a prompt and of an answer.
            seconds: for the search.
            begin: is called with each phase that begins.
        """
        ...

    def execute_with(self, artifact: Artifact, target: Target, settings: SettingValues) -> Executor:
        """As `execute`, with settings of a Configuration."""
        ...

    def differences(self, configuration: Configuration) -> tuple[str, ...]:
        """What is different here from where a configuration was found; empty where nothing is."""
        ...
