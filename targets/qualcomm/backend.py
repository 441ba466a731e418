"""The Qualcomm backend: QNN HTP contexts by the vendor's compiler, executed on the vendor's emulator."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx_ir as ir

from pocketport.compress.graph import inferred, static_shape
from pocketport.diagnostics import Diagnostic, Severity
from pocketport.profiles.measurement import ExecutedBy
from pocketport.targets.checks import check_ops
from pocketport.targets.contract import Artifact, CompileRequest, CompileResult, Executor, Lowered, Target
from pocketport.targets.legality import Legality
from pocketport.targets.qualcomm.session import PACKAGE, is_installed
from pocketport.targets.qualcomm.target import SOCS, VENDOR, find_soc

HIGHEST_RANK = 5
"""Of tensors, as the compiler's reshape and transpose kernels have it."""


class QualcommBackend:
    """Behaviour of every Qualcomm target. ``compile`` wants a fresh process (see ``compile.py``)."""

    vendor = VENDOR
    engines: Mapping[str, tuple[str, ExecutedBy]] = {
        "qnn-context": ("QNN HTP x86 emulator (onnxruntime-qnn)", "emulated")
    }

    def targets(self) -> Sequence[Target]:
        """Every SoC of the table."""
        return [Target(VENDOR, name) for name in SOCS]

    def legality(self, target: Target) -> Legality:
        """The same for every SoC: what differs by architecture is settled in lowering, with a Diagnostic."""
        find_soc(target)
        return Legality.read(Path(__file__).parent / "legality.toml")

    def missing(self) -> tuple[Diagnostic, ...]:
        """Whether onnxruntime-qnn is absent."""
        if is_installed():
            return ()
        return (
            Diagnostic(
                "qualcomm.toolchain", Severity.ERROR, VENDOR, f"{PACKAGE} is not installed",
                "pip install 'pocketport[qualcomm]'",
            ),
        )  # fmt: skip

    def check(self, component: str, graph: ir.Model, target: Target) -> tuple[Diagnostic, ...]:
        """Ops that the compiler has no kernel for, dynamic shapes and ranks over five, by node."""
        findings = list(check_ops(VENDOR, component, graph, self.legality(target)))
        for node in inferred(graph).graph.all_nodes():
            where = f"{component}, node {node.name or node.outputs[0].name}, op {node.op_type}"
            for value in node.outputs:
                shape = static_shape(value)
                if shape is None and value.shape is not None:
                    why, fix = f"the shape {value.shape} of {value.name} is not static", "fix the shapes when ingesting"
                    findings.append(Diagnostic("qualcomm.dynamic-shape", Severity.ERROR, where, why, fix))
                elif shape is not None and len(shape) > HIGHEST_RANK:
                    why, fix = (
                        f"{value.name} has {len(shape)} dimensions, at most {HIGHEST_RANK} are taken",
                        "reshape it",
                    )
                    findings.append(Diagnostic("qualcomm.rank", Severity.ERROR, where, why, fix))
        return tuple(findings)

    def lower(self, request: CompileRequest) -> Lowered:
        """See ``lower.py``."""
        from pocketport.targets.qualcomm.lower import lower

        return lower(request)

    def compile(self, request: CompileRequest, lowered: Lowered) -> CompileResult:
        """See ``compile.py``."""
        from pocketport.targets.qualcomm.compile import compile_graph

        return compile_graph(request, lowered)

    def estimate(self, request: CompileRequest, lowered: Lowered) -> dict[str, float]:
        """The compiler's own estimate of time and DDR traffic on a proxy chip: see ``estimate.py``."""
        from pocketport.targets.qualcomm.estimate import estimate_graph

        return estimate_graph(request, lowered)

    def execute(self, artifact: Artifact, target: Target, pivot: Path) -> Executor:
        """The context on the x86 emulator; `pivot` is not needed, the artifact carries its encodings."""
        from pocketport.targets.qualcomm.execute import HtpEmulator

        return HtpEmulator(artifact, target)
