"""MediatekBackend: QDQ ONNX → .tflite, LiteRT's CPU kernels as the reference, MediaTek's plugin as compiler or lint."""

import shutil
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path

import onnx_ir as ir

from pocketport.diagnostics import Diagnostic, Severity
from pocketport.errors import ToolchainError, UsageError
from pocketport.files import sha256_path, size_of
from pocketport.targets.checks import check_ops
from pocketport.targets.contract import Artifact, CompileRequest, CompileResult, Executor, Lowered, Target
from pocketport.targets.legality import Legality
from pocketport.targets.mediatek import plugin
from pocketport.targets.mediatek.execute import LiteRTExecutor
from pocketport.targets.mediatek.lower import check_graph, lower_file
from pocketport.targets.mediatek.model_file import read_operators
from pocketport.targets.mediatek.target import SOCS, VENDOR, find_soc

KIND = "tflite"
AOT_KIND = "tflite-npu"


class MediatekBackend:
    """One instance for the process, without state."""

    @property
    def vendor(self) -> str:
        """The first half of ``mediatek/mt6989``."""
        return VENDOR

    @property
    def engines(self) -> Mapping[str, tuple[str, str]]:
        """LiteRT's integer kernels compute what the file says, but on this host's CPU: ``emulated``."""
        return {KIND: ("LiteRT CPU kernels", "emulated")}

    def targets(self) -> Sequence[Target]:
        """Every SoC of LiteRT's MediaTek plugin."""
        return tuple(Target(VENDOR, name) for name in SOCS)

    def legality(self, target: Target) -> Legality:
        """One table for all SoCs: the plugin applies the same rules to each."""
        find_soc(target)
        return _legality()

    def missing(self) -> tuple[Diagnostic, ...]:
        """An ERROR without LiteRT; NOTEs without the NeuroPilot SDK and without a C compiler."""
        found = []
        if not plugin.has_litert():
            found.append(_LITERT_MISSING)
        if all(plugin.sdk_libraries(soc) is None for soc in SOCS.values()):
            found.append(_SDK_MISSING)
        if plugin.c_compiler() is None:
            found.append(_COMPILER_MISSING)
        return tuple(found)

    def check(self, component: str, graph: ir.Model, target: Target) -> tuple[Diagnostic, ...]:
        """The ops that aren't listed, then, where LiteRT is installed, every node that a trial lowering refuses."""
        unlisted = check_ops(VENDOR, component, graph, self.legality(target))
        if unlisted or not plugin.has_litert():
            return unlisted
        return check_graph(component, graph)

    def lower(self, request: CompileRequest) -> Lowered:
        """Write the .tflite. The same file serves every SoC."""
        find_soc(request.target)
        if not plugin.has_litert():
            raise ToolchainError(_LITERT_MISSING.why, where=_LITERT_MISSING.where, fix=_LITERT_MISSING.fix)
        path = request.work / f"{request.component}.tflite"
        lower_file(request.component, request.pivot, path)
        return Lowered({KIND: path})

    def compile(self, request: CompileRequest, lowered: Lowered) -> CompileResult:
        """The portable .tflite and, with the NeuroPilot SDK, one that carries the NPU's binary; else the plugin's lint."""
        soc = find_soc(request.target)
        request.out.mkdir(parents=True, exist_ok=True)
        portable = request.out / f"{request.component}.tflite"
        shutil.copyfile(lowered.paths[KIND], portable)
        artifacts = [_artifact(portable, KIND, primary=True)]
        libraries = plugin.sdk_libraries(soc)
        if libraries is not None:
            compiled = request.out / f"{request.component}.{soc.name}.tflite"
            offload = plugin.compile_ahead(portable, compiled, soc, libraries)
            artifacts.append(_artifact(compiled, AOT_KIND, primary=False))
            return CompileResult(tuple(artifacts), offload)
        linted, diagnostics = plugin.lint(portable, request.work, soc)
        return CompileResult(tuple(artifacts), linted, (_SDK_MISSING, *diagnostics))

    def execute(self, artifact: Artifact, target: Target, pivot: Path) -> Executor:
        """Open the portable .tflite in LiteRT's interpreter."""
        find_soc(target)
        if artifact.kind != KIND:
            raise UsageError(
                f"{artifact.kind} runs on the phone's NPU only", where=str(artifact.path), fix="execute the portable .tflite"
            )
        return LiteRTExecutor(artifact.path)


def _artifact(path: Path, kind: str, *, primary: bool) -> Artifact:
    operators = read_operators(path)
    facts: dict[str, str | int | float] = {
        "ops": sum(o.counts for o in operators),
        "requantizations": sum(o.code in ("QUANTIZE", "DEQUANTIZE") for o in operators),
        "transposes": sum(o.code == "TRANSPOSE" for o in operators),
        "litert": version("ai-edge-litert"),
    }
    return Artifact(path, kind, size_of(path), sha256_path(path), primary, facts)


_LITERT_MISSING = Diagnostic(
    "mediatek.no-litert", Severity.ERROR, "ai-edge-litert", "LiteRT is not installed", "pip install 'pocketport[mediatek]'"
)
_SDK_MISSING = Diagnostic(
    "mediatek.no-sdk",
    Severity.NOTE,
    "NeuroPilot SDK",
    "it is not installed: the result is a portable .tflite, compiled on device",
    "pip install ai-edge-litert-sdk-mediatek (downloads the SDK from MediaTek) to compile for the NPU on this host",
)
_COMPILER_MISSING = Diagnostic(
    "mediatek.no-c-compiler",
    Severity.NOTE,
    "cc",
    "no C compiler: MediaTek's plugin can't be asked which ops it takes",
    "install gcc or clang",
)


@cache
def _legality() -> Legality:
    return Legality.read(Path(__file__).with_name("legality.toml"))
