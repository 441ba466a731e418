"""Lowered graph → QNN context binary, by the vendor's own offline compiler inside onnxruntime-qnn.

The artifact is a directory ``<component>.qnn``: ``<component>.bin`` (the context binary), ``<component>.onnx``
(an EPContext graph by which onnxruntime loads it) and ``io.json`` (the encodings of its integer inputs and outputs).

The bytes are the same for the same graph if the process is fresh and the compiler is given a relative path: it
hashes the path into the graph's name, and numbers tensors by a counter that a process never resets. `compile_graph`
changes into the work directory for that; whoever calls it has to give it a worker process of its own.
"""

import contextlib
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pocketport.diagnostics import Diagnostic, Severity
from pocketport.errors import ToolchainError, VerificationError
from pocketport.files import atomic_directory, sha256_file, sha256_path, size_of
from pocketport.targets.contract import Artifact, CompileRequest, CompileResult, Lowered, Offload
from pocketport.targets.qualcomm.context import read_context
from pocketport.targets.qualcomm.session import PROVIDER, captured_log, open_session, provider_options
from pocketport.targets.qualcomm.target import find_soc

KIND = "qnn-context"
TRACE = "trace/qnn_op_trace.json"
QUANTIZERS = frozenset({"QuantizeLinear", "DequantizeLinear"})
DDR_FIGURES = {
    "spill_bytes": "ddr_spill_bytes",
    "fill_bytes": "ddr_fill_bytes",
    "read_total_bytes": "ddr_read_bytes",
    "write_total_bytes": "ddr_write_bytes",
}


def compile_graph(request: CompileRequest, lowered: Lowered) -> CompileResult:
    """Compile `lowered` for the request's SoC and check the binary against what was asked.

    Ops that the compiler refuses come back as ERROR diagnostics, by node and with its own reason, and no artifact.
    `estimates` are bytes of DDR traffic for one inference, from the compiler's log.

    Raises:
        ToolchainError: the compiler failed otherwise.
        VerificationError: the binary is for another SoC, or a node stayed on the CPU.
    """
    soc = find_soc(request.target)
    where = f"{request.target}, {request.component}"
    options = {
        **provider_options(soc),
        **json.loads(lowered.paths["options"].read_text()),
        "enable_framework_op_trace": "1",
        "framework_op_trace_dir": "trace",
    }
    wrapper = Path(f"{request.component}_ctx.onnx")
    entries = {
        "session.record_ep_graph_assignment_info": "1",
        "ep.context_enable": "1",
        "ep.context_embed_mode": "0",
        "ep.context_file_path": str(wrapper),
    }
    with contextlib.chdir(request.work):
        for stale in (wrapper, Path(f"{wrapper.stem}_qnn.bin"), Path(TRACE)):
            stale.unlink(
                missing_ok=True
            )  # an existing context is an error, an old trace would be taken for the new one
        Path(TRACE).parent.mkdir(exist_ok=True)
        with captured_log("REASON", "_bytes=", "rror") as log:
            try:
                session = open_session(Path(lowered.paths["onnx"].name), options, entries, severity=0)
            except Exception as error:  # onnxruntime raises a kind of its own for every status code
                return _refused(request, lowered, error, log, where)
        offload = _offload(session.get_provider_graph_assignment_info())
        del session
        if offload.elsewhere or not offload.npu_ops:
            raise VerificationError(
                f"on the CPU: {', '.join(offload.elsewhere) or 'everything'}", where=where, fix="report it"
            )
        artifact = _collect(request, lowered, wrapper)
    if difference := read_context(artifact.path / f"{request.component}.bin").differences(soc):
        raise VerificationError(
            f"the context binary is not what was asked for: {difference}", where=where, fix="report it"
        )
    return CompileResult((artifact,), offload, estimates=ddr_traffic(log))


def ddr_traffic(log: Sequence[str]) -> dict[str, float]:
    """Bytes moved over DDR in one inference, from the summary that the compiler logs."""
    found = [re.fullmatch(r"(\w+_bytes)=(\d+)", line) for line in log]
    return {DDR_FIGURES[m[1]]: float(m[2]) for m in found if m and m[1] in DDR_FIGURES}


def _offload(assignment: Sequence[Any]) -> Offload:
    taken, elsewhere = 0, []
    for subgraph in assignment:
        for node in subgraph.get_nodes():
            if node.op_type in QUANTIZERS:
                continue
            if subgraph.ep_name == PROVIDER:
                taken += 1
            else:
                elsewhere.append(f"{node.name} ({node.op_type})")
    return Offload(taken, taken + len(elsewhere), "qnn compiler", tuple(elsewhere))


def _refused(
    request: CompileRequest, lowered: Lowered, error: Exception, log: Sequence[str], where: str
) -> CompileResult:
    """What the op trace, written even when compiling fails, says about the refused nodes."""
    import onnx

    trace = json.loads(Path(TRACE).read_text()) if Path(TRACE).is_file() else {}
    nodes: list[Mapping[str, str]] = trace.get("unsupported_nodes", [])
    if not nodes:
        reasons = dict.fromkeys(line for line in log if "rror" in line)
        tail = "\n".join(list(reasons)[-6:])
        raise ToolchainError(f"{error}\n{tail}".rstrip(), where=where, fix="see the compiler's words above") from error
    diagnostics = tuple(
        Diagnostic(
            "qualcomm.refused-op", Severity.ERROR, f"{request.component}: {node['node_name']} ({node['op_type']})",
            node["reason"], "replace the op, or leave it out of the accelerated part of the model",
        )
        for node in nodes
    )  # fmt: skip
    graph = onnx.load(lowered.paths["onnx"], load_external_data=False).graph
    total = sum(node.op_type not in QUANTIZERS for node in graph.node)
    elsewhere = tuple(f"{n['node_name']} ({n['op_type']})" for n in nodes if n["op_type"] not in QUANTIZERS)
    return CompileResult((), Offload(total - len(elsewhere), total, "qnn compiler", elsewhere), diagnostics)


def _collect(request: CompileRequest, lowered: Lowered, wrapper: Path) -> Artifact:
    import onnx

    name = request.component
    graph = onnx.load(wrapper)
    if {node.op_type for node in graph.graph.node} != {"EPContext"} or len(graph.graph.node) != 1:
        kinds = ", ".join(sorted({node.op_type for node in graph.graph.node}))
        raise VerificationError(
            f"the compiled graph is in pieces ({kinds})", where=f"{request.target}, {name}", fix="report it"
        )
    for attribute in graph.graph.node[0].attribute:
        if attribute.name == "ep_cache_context":
            attribute.s = f"{name}.bin".encode()
    target = request.out / f"{name}.qnn"
    with atomic_directory(target) as temporary:
        shutil.move(f"{wrapper.stem}_qnn.bin", temporary / f"{name}.bin")
        shutil.copyfile(lowered.paths["io"], temporary / "io.json")
        onnx.save(graph, temporary / f"{name}.onnx")
    binary = target / f"{name}.bin"
    facts: dict[str, str | int | float] = {
        **read_context(binary).facts(),
        "context_bytes": binary.stat().st_size,
        "context_sha256": sha256_file(binary),
    }
    return Artifact(target, KIND, size_of(target), sha256_path(target), facts=facts)
