"""ExampleBackend: the contract, method by method."""

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import onnx_ir as ir

from pocketport.diagnostics import Diagnostic
from pocketport.files import sha256_path, size_of
from pocketport.profiles.measurement import ExecutedBy
from pocketport.targets.checks import check_ops, unknown_soc
from pocketport.targets.contract import (
    Artifact,
    CompileRequest,
    CompileResult,
    Executor,
    Lowered,
    Offload,
    Target,
)
from pocketport.targets.example import compiler, runtime
from pocketport.targets.legality import Legality

VENDOR = "example"
SOCS = ("one",)
KIND = "example-program"


class ExampleBackend:
    """One instance for the process; it holds no state, so that every method can run in any worker."""

    @property
    def vendor(self) -> str:
        """The first half of ``example/one``."""
        return VENDOR

    @property
    def engines(self) -> Mapping[str, tuple[str, ExecutedBy]]:
        """The runtime imitates the chip on this host, hence ``emulated``."""
        return {KIND: ("example numpy runtime", "emulated")}

    def targets(self) -> Sequence[Target]:
        """The one chip there is."""
        return tuple(Target(VENDOR, soc) for soc in SOCS)

    def legality(self, target: Target) -> Legality:
        """The same data for every SoC here; a real backend may have one file each."""
        if target.soc not in SOCS:
            raise unknown_soc(target, SOCS)
        return _legality()

    def missing(self) -> tuple[Diagnostic, ...]:
        """Nothing: the toolchain is numpy. A real backend looks for its package here, without importing it."""
        return ()

    def check(self, component: str, graph: ir.Model, target: Target) -> tuple[Diagnostic, ...]:
        """The ops that are not in the legality data. Rules about attributes and shapes would be added here."""
        return check_ops(VENDOR, component, graph, self.legality(target))

    def lower(self, request: CompileRequest) -> Lowered:
        """The pivot in the compiler's input format, one path for every artifact kind that will be made of it."""
        source = request.work / f"{request.component}.source"
        compiler.translate(request.pivot, source)
        return Lowered({KIND: source})

    def compile(self, request: CompileRequest, lowered: Lowered) -> CompileResult:
        """Run the compiler, then read the facts back from what it wrote."""
        path = request.out / f"{request.component}.example"
        compiler.build(lowered.paths[KIND], path, soc=request.target.soc)
        program = runtime.read_program(path)
        ops = [op["op"] for op in program["ops"] if op["op"] not in ("QuantizeLinear", "DequantizeLinear")]
        facts = {"soc": program["soc"], "format": program["format"], "ops": len(ops)}
        artifact = Artifact(path, KIND, size_of(path), sha256_path(path), facts=facts)
        return CompileResult((artifact,), Offload(len(ops), len(ops), source="example compiler"))

    def execute(self, artifact: Artifact, target: Target, pivot: Path) -> Executor:
        """Open the artifact; nothing but the artifact is read (the pivot is there for names and shapes)."""
        return runtime.ProgramExecutor(artifact.path)


@cache
def _legality() -> Legality:
    return Legality.read(Path(__file__).with_name("legality.toml"))
