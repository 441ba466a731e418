"""Both artifacts from one pivot: an ONNX model for onnxruntime and an IR for OpenVINO."""

import re
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx_ir as ir
import onnxruntime

from pocketport.compress.graph import load_graph, save_graph
from pocketport.diagnostics import Diagnostic, Severity
from pocketport.errors import ToolchainError
from pocketport.files import atomic_directory, sha256_path, size_of
from pocketport.targets.contract import Artifact, CompileRequest, CompileResult, Lowered
from pocketport.targets.x86.choose import try_engines
from pocketport.targets.x86.engines import MODEL_FILE, compile_model, onnx_session
from pocketport.targets.x86.lower import lower_graph
from pocketport.targets.x86.settings import ONNX, OPENVINO_IR, own_onnxruntime, own_openvino
from pocketport.targets.x86.target import cpu_model, has_vnni, lacking

AUTOMATIC_NAME = re.compile(r"[A-Za-z]\w*_\d+")
INTEGER_KERNELS = re.compile(r"QLinear|QGemm|QAttention|Integer")  # onnxruntime's names
NOT_LAYERS = frozenset({"Input", "Output", "Const", "Constant", "Parameter", "Result"})  # OpenVINO's names


def lower_component(request: CompileRequest, *, openvino: bool) -> Lowered:
    """What each engine's artifact is made of."""
    lowered = request.work / f"{request.component}.onnxruntime"
    model = load_graph(request.pivot)
    lower_graph(model, saturating=not has_vnni(request.target))
    save_graph(model, lowered / MODEL_FILE[ONNX])
    return Lowered({ONNX: lowered, OPENVINO_IR: request.pivot} if openvino else {ONNX: lowered})


def compile_component(request: CompileRequest, lowered: Lowered) -> CompileResult:
    """Write the artifacts; the primary one is the faster among those that compute what the pivot says.

    The artifacts' bytes depend on pivot and target alone. The choice depends on this machine: an engine that computes
    something else here is left out, with a warning. Where the machine can't run the target, onnxruntime's artifact is
    the primary and a note says that nothing was measured.
    """
    artifacts = [_onnx_artifact(request, lowered.paths[ONNX])]
    diagnostics: list[Diagnostic] = []
    if OPENVINO_IR in lowered.paths:
        try:
            artifacts.append(_ir_artifact(request, lowered.paths[OPENVINO_IR]))
        except ToolchainError as error:
            diagnostics.append(_warning(request, "openvino-refused", error.why, error.fix))
    absent = lacking(request.target)
    if absent:
        diagnostics.append(
            Diagnostic(
                code="x86.not-measured",
                severity=Severity.NOTE,
                where=f"{request.component}, target {request.target}",
                why=f"this host ({cpu_model()}) lacks {', '.join(absent)}: onnxruntime was taken without measuring",
                fix="compile on a machine that has them",
            )
        )
        return CompileResult(_with_primary(artifacts, ONNX), diagnostics=tuple(diagnostics))
    trial = try_engines(request.pivot, {artifact.kind: artifact.path for artifact in artifacts})
    for kind, decibels in trial.fidelity_db.items():
        if decibels < trial.bound_db:
            why = f"it differs from the pivot: {decibels:.1f} dB on arbitrary inputs, {trial.bound_db:.1f} expected"
            fix = "see the component's verification" if kind == trial.choice else "nothing: it is left out"
            diagnostics.append(_warning(request, f"{kind}-inexact", why, fix))
    artifacts = [a for a in artifacts if trial.fidelity_db[a.kind] >= trial.bound_db or a.kind == trial.choice]
    estimates = {f"{kind}_ms": median for kind, median in trial.median_ms.items()}
    return CompileResult(_with_primary(artifacts, trial.choice), diagnostics=tuple(diagnostics), estimates=estimates)


def _with_primary(artifacts: list[Artifact], kind: str) -> tuple[Artifact, ...]:
    return tuple(replace(artifact, primary=artifact.kind == kind) for artifact in artifacts)


def _warning(request: CompileRequest, topic: str, why: str, fix: str) -> Diagnostic:
    return Diagnostic(f"x86.{topic}", Severity.WARNING, f"{request.component}, target {request.target}", why, fix)


def _onnx_artifact(request: CompileRequest, lowered: Path) -> Artifact:
    path = request.out / f"{request.component}.onnxruntime"
    with atomic_directory(path) as temporary:
        shutil.copytree(lowered, temporary, dirs_exist_ok=True)
    return Artifact(path, ONNX, size_of(path), sha256_path(path), facts=onnx_facts(path, request.work))


def _ir_artifact(request: CompileRequest, pivot: Path) -> Artifact:
    path = request.out / f"{request.component}.openvino"
    write_ir(pivot, path)
    return Artifact(path, OPENVINO_IR, size_of(path), sha256_path(path), facts=ir_facts(path))


def write_ir(pivot: Path, artifact: Path) -> None:
    """Convert the pivot with OpenVINO's ONNX front end into ``model.xml`` and ``model.bin``.

    Raises:
        ToolchainError: the front end refuses the graph.
    """
    import openvino

    try:
        model = openvino.Core().read_model(pivot)
    except RuntimeError as error:
        raise ToolchainError(
            f"OpenVINO's front end: {error}", where=str(pivot), fix="the onnxruntime artifact is not concerned"
        ) from error
    name_stably(model)
    with atomic_directory(artifact) as temporary:
        openvino.save_model(model, temporary / MODEL_FILE[OPENVINO_IR], compress_to_fp16=False)


def name_stably(model: Any) -> None:
    """Rename the ops of an ``openvino.Model`` whose names come from a process-wide counter: bytes must not depend on it."""
    for index, op in enumerate(model.get_ordered_ops()):
        if AUTOMATIC_NAME.fullmatch(op.get_friendly_name()) and op.get_friendly_name() == op.get_name():
            op.set_friendly_name(f"{op.get_type_name()}.{index}")


def onnx_facts(artifact: Path, work: Path) -> dict[str, str | int | float]:
    """What onnxruntime makes of the artifact: nodes after optimizing, and those that read or compute integers."""
    optimized = work / "optimized.onnx"
    onnx_session(artifact / MODEL_FILE[ONNX], own_onnxruntime(), optimized=optimized)
    graph = ir.load(optimized).graph
    ops = Counter(node.op_type for node in graph)
    packed = [node.inputs[1] for node in graph if node.op_type == "MatMulNBits"]
    return {
        "engine": f"onnxruntime {onnxruntime.__version__}",
        "nodes": ops.total(),
        "integer_nodes": sum(count for op, count in ops.items() if INTEGER_KERNELS.search(op)),
        "packed_int4_bytes": sum(v.const_value.nbytes for v in packed if v is not None and v.const_value is not None),
    }


def ir_facts(artifact: Path) -> dict[str, str | int | float]:
    """The same for OpenVINO, from the graph that its CPU plugin executes and the constants of the IR."""
    import openvino

    compiled = compile_model(artifact / MODEL_FILE[OPENVINO_IR], own_openvino())
    infos = [node.get_rt_info() for node in compiled.get_runtime_model().get_ops()]
    layers = [info for info in infos if info["layerType"] not in NOT_LAYERS]
    ops = openvino.Core().read_model(artifact / MODEL_FILE[OPENVINO_IR]).get_ops()
    constants = [op for op in ops if op.get_type_name() == "Constant"]
    return {
        "engine": f"openvino {openvino.__version__.split('-')[0]}",
        "nodes": len(layers),
        "integer_nodes": sum(info["runtimePrecision"] in ("u8", "i8") for info in layers),
        "packed_int4_bytes": sum(op.get_byte_size() for op in constants if op.get_element_type() == openvino.Type.i4),
    }
