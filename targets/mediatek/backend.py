"""MediatekBackend: QDQ ONNX → .tflite, executed by LiteRT, compiled or linted by MediaTek's plugin."""

import shutil
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path

import onnx_ir as ir

from pocketport.diagnostics import Diagnostic
from pocketport.errors import ToolchainError, UsageError
from pocketport.files import sha256_path, size_of
from pocketport.profiles.measurement import ExecutedBy
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
    def engines(self) -> Mapping[str, tuple[str, ExecutedBy]]:
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
            found.append(plugin.LITERT_MISSING)
        if all(plugin.sdk_libraries(soc) is None for soc in SOCS.values()):
            found.append(plugin.SDK_MISSING)
        if plugin.c_compiler() is None:
            found.append(plugin.COMPILER_MISSING)
        return tuple(found)

    def check(self, component: str, graph: ir.Model, target: Target) -> tuple[Diagnostic, ...]:
        """The ops that aren't listed; if none and LiteRT is installed, what a trial lowering refuses."""
        unlisted = check_ops(VENDOR, component, graph, self.legality(target))
        if unlisted or not plugin.has_litert():
            return unlisted
        return check_graph(component, graph)

    def lower(self, request: CompileRequest) -> Lowered:
        """Write the .tflite. The same file serves every SoC."""
        find_soc(request.target)
        if not plugin.has_litert():
            absent = plugin.LITERT_MISSING
            raise ToolchainError(absent.why, where=absent.where, fix=absent.fix)
        path = request.work / f"{request.component}.tflite"
        return Lowered({KIND: path}, lower_file(request.component, request.pivot, path))

    def compile(self, request: CompileRequest, lowered: Lowered) -> CompileResult:
        """The portable .tflite; with the NeuroPilot SDK one with the NPU's binary too, else the lint."""
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
        return CompileResult(tuple(artifacts), linted, (plugin.SDK_MISSING, *diagnostics))

    def execute(self, artifact: Artifact, target: Target, pivot: Path) -> Executor:
        """Open the portable .tflite in LiteRT's interpreter."""
        find_soc(target)
        if artifact.kind != KIND:
            raise UsageError(
                f"{artifact.kind} runs on the phone's NPU only",
                where=str(artifact.path),
                fix="execute the portable .tflite",
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


@cache
def _legality() -> Legality:
    return Legality.read(Path(__file__).with_name("legality.toml"))
