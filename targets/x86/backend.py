"""X86Backend: the pivot on onnxruntime and on OpenVINO."""

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path

import onnx_ir as ir

from pocketport.diagnostics import Diagnostic, Severity
from pocketport.profiles.measurement import ExecutedBy, Measurement
from pocketport.targets.checks import check_ops
from pocketport.targets.configuration import Configuration, SettingValues
from pocketport.targets.contract import (
    Arrays,
    Artifact,
    CompileRequest,
    CompileResult,
    Executor,
    Lowered,
    Target,
    TuneJob,
)
from pocketport.targets.legality import Legality
from pocketport.targets.x86.target import INSTRUCTION_SETS, VENDOR, cpu_model, require_host, required_flags, threads

ENGINES: Mapping[str, tuple[str, ExecutedBy]] = {
    "onnx": ("onnxruntime", "measured"),
    "openvino-ir": ("openvino", "measured"),
}


class X86Backend:
    """Two engines, one pivot. OpenVINO is optional: without it there is one artifact, and `missing` says so."""

    @property
    def vendor(self) -> str:
        """``x86``."""
        return VENDOR

    @property
    def engines(self) -> Mapping[str, tuple[str, ExecutedBy]]:
        """Both engines run on the very hardware that they are for."""
        return ENGINES

    def targets(self) -> Sequence[Target]:
        """One target for each set of instructions that a host may have to have."""
        return tuple(Target(VENDOR, name) for name in INSTRUCTION_SETS)

    def legality(self, target: Target) -> Legality:
        """The same for every instruction set: the engines choose their kernels at run time."""
        required_flags(target)
        return _legality()

    def missing(self) -> tuple[Diagnostic, ...]:
        """OpenVINO, when it is not installed; onnxruntime is a dependency of the package."""
        if _has_openvino():
            return ()
        return (
            Diagnostic(
                code="x86.openvino-missing",
                severity=Severity.WARNING,
                where="toolchain openvino",
                why="it is not installed: only the onnxruntime artifact is made",
                fix="pip install 'pocketport[x86]'",
            ),
        )

    def check(self, component: str, graph: ir.Model, target: Target) -> tuple[Diagnostic, ...]:
        """The ops that are not in the legality data."""
        return check_ops(VENDOR, component, graph, self.legality(target))

    def lower(self, request: CompileRequest) -> Lowered:
        """A directory for onnxruntime, with packed 4-bit layers; the pivot itself for OpenVINO."""
        from pocketport.targets.x86.compile import lower_component

        return lower_component(request, openvino=_has_openvino())

    def compile(self, request: CompileRequest, lowered: Lowered) -> CompileResult:
        """Write the artifacts and, where this host can run the target, measure which is the faster."""
        from pocketport.targets.x86.compile import compile_component

        return compile_component(request, lowered)

    def execute(self, artifact: Artifact, target: Target, pivot: Path) -> Executor:
        """Open an artifact; ToolchainError when this host lacks the target's instructions."""
        from pocketport.targets.x86.engines import open_engine

        require_host(target)
        return open_engine(artifact.kind, artifact.path)

    def measure(
        self, component: str, artifact: Artifact, target: Target, feeds: Arrays, *, runs: int = 50, warmup: int = 5
    ) -> tuple[Measurement, ...]:
        """Latency and peak memory on this host, see `pocketport.targets.x86.measure`."""
        from pocketport.targets.x86.measure import measure

        return measure(component, artifact, target, feeds, runs=runs, warmup=warmup)

    def tune(
        self, jobs: Sequence[TuneJob], target: Target, seconds: float, done: Callable[[str], None]
    ) -> Configuration:
        """Race the engines' settings on this host, see `pocketport.targets.x86.search`."""
        from pocketport.targets.x86.search import tune

        require_host(target)
        return tune(jobs, seconds, done, openvino=_has_openvino())

    def tune_gguf(
        self, model: Path, programs: Path | None, tokens: tuple[int, int], seconds: float, begin: Callable[[str], None]
    ) -> Configuration:
        """Race llama.cpp's settings on this host, see `pocketport.targets.x86.llama_cpp_search`."""
        from pocketport.targets.x86.llama_cpp_search import tune_gguf

        return tune_gguf(model, programs, *tokens, seconds, begin)

    def execute_with(self, artifact: Artifact, target: Target, settings: SettingValues) -> Executor:
        """Open an artifact with settings of a configuration; InputError when they do not fit this host."""
        from pocketport.targets.x86.engines import open_engine
        from pocketport.targets.x86.settings import parse_settings

        require_host(target)
        return open_engine(artifact.kind, artifact.path, parse_settings(settings, f"settings of {artifact.path}"))

    def differences(self, configuration: Configuration) -> tuple[str, ...]:
        """Another processor, another number of threads, other versions of the engines."""
        from pocketport.targets.x86.search import engines

        here = {"processor": cpu_model(), "threads": str(threads()), **engines(openvino=_has_openvino())}
        found = {"processor": configuration.processor, "threads": str(configuration.threads), **configuration.engines}
        return tuple(
            f"{name}: {value} there, {here.get(name, 'nothing')} here"
            for name, value in found.items() if here.get(name) != value
        )  # fmt: skip


def _has_openvino() -> bool:
    return importlib.util.find_spec("openvino") is not None


@cache
def _legality() -> Legality:
    return Legality.read(Path(__file__).with_name("legality.toml"))
