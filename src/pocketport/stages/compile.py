"""Stage 4: one component of the pivot → a vendor's artifacts, in a worker process."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from pocketport.diagnostics import Diagnostic, Severity
from pocketport.files import sha256_path, size_of, write_json
from pocketport.stages.context import Context
from pocketport.store import StageResult
from pocketport.targets.contract import Artifact, CompileRequest, CompileResult, Offload, Target
from pocketport.targets.registry import backend_for
from pocketport.workers import Limits, call_in_worker

RESULT_FILE = "result.json"
LIMITS = Limits(seconds=1800, memory_bytes=12 << 30)
TOOLCHAINS = {
    "qualcomm": ("onnxruntime-qnn", "onnxruntime"),
    "apple": ("coreai-core", "coremltools"),
    "mediatek": ("ai-edge-litert",),
    "x86": ("onnxruntime", "openvino"),
}


def compile_component(context: Context, target: str, component: str, quantized: StageResult) -> StageResult:
    """The artifacts' directory with ``result.json``; ToolchainError with the vendor's reason when it refuses."""
    name = f"compile {target} {component}"
    context.progress.start(name, f"{target}: compile {component}", None)
    pivot = quantized.path / "bundle" / f"{component}.onnx"
    parsed = Target.parse(target)
    inputs = {"target": target, "component": component, "pivot": _component_digest(pivot)}

    def produce(directory: Path) -> None:
        result = call_in_worker(
            "pocketport.stages.compile:compile_in_worker",
            parsed,
            component,
            pivot,
            directory,
            label=name,
            limits=LIMITS,
        )
        write_json(directory / RESULT_FILE, _to_json(result, directory))

    code = ("compress", f"targets/{parsed.vendor}")
    packages = TOOLCHAINS.get(parsed.vendor, ())
    return context.record(name, context.store.run("compile", inputs, produce, code=code, packages=packages))


def compile_in_worker(target: Target, component: str, pivot: Path, out: Path) -> CompileResult:
    """Lower and compile; runs in the worker process."""
    backend = backend_for(target)
    with TemporaryDirectory(prefix="pocketport-") as work:
        request = CompileRequest(component, pivot, target, Path(work), out)
        lowered = backend.lower(request)
        result = backend.compile(request, lowered)
    return replace(result, diagnostics=(*lowered.diagnostics, *result.diagnostics))


def load_compiled(result: StageResult) -> CompileResult:
    """Read a compile stage's result; artifact paths are absolute."""
    document = json.loads((result.path / RESULT_FILE).read_text(encoding="utf-8"))
    artifacts = tuple(Artifact(**{**a, "path": result.path / a["path"]}) for a in document["artifacts"])
    diagnostics = tuple(Diagnostic(**{**d, "severity": Severity(d["severity"])}) for d in document["diagnostics"])
    offload = document["offload"]
    return CompileResult(
        artifacts,
        Offload(**{**offload, "elsewhere": tuple(offload["elsewhere"])}) if offload else None,
        diagnostics,
        document["estimates"],
    )


def _to_json(result: CompileResult, directory: Path) -> dict[str, object]:
    artifacts = []
    for artifact in result.artifacts:
        path = artifact.path
        record = asdict(replace(artifact, bytes=size_of(path), sha256=sha256_path(path)))
        artifacts.append({**record, "path": path.relative_to(directory).as_posix(), "facts": dict(artifact.facts)})
    return {
        "artifacts": artifacts,
        "offload": asdict(result.offload) if result.offload else None,
        "diagnostics": [d.to_json() for d in result.diagnostics],
        "estimates": dict(result.estimates),
    }


def _component_digest(pivot: Path) -> str:
    data = pivot.with_suffix(".data")
    return sha256_path(pivot) + (sha256_path(data) if data.exists() else "")
