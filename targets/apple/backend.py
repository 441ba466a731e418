"""Apple: one pivot to two artifacts, an ``.aimodel`` (Core AI) and an ``.mlpackage`` (Core ML)."""

import hashlib
import importlib.util
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import onnx_ir as ir

from pocketport.compress.graph import constant, load_graph
from pocketport.compress.pivot.palettes import stored_palettes
from pocketport.diagnostics import Diagnostic, Severity
from pocketport.errors import ToolchainError, VerificationError
from pocketport.files import sha256_path, size_of
from pocketport.profiles.measurement import ExecutedBy
from pocketport.targets.apple.coreai_executor import CoreAIExecutor
from pocketport.targets.apple.coreai_program import read_aimodel, write_aimodel
from pocketport.targets.apple.coreml_program import feature_names, read_mlpackage, write_mlpackage
from pocketport.targets.apple.lint import lint
from pocketport.targets.apple.lowering import check_graph
from pocketport.targets.apple.target import VENDOR, chip_of, chips
from pocketport.targets.contract import Artifact, CompileRequest, CompileResult, Executor, Lowered, Target
from pocketport.targets.legality import Legality

PACKAGES = {"coreai": "coreai-core>=1.0.0b3", "coremltools": "coremltools>=9.0"}
WRITERS = {"aimodel": write_aimodel, "mlpackage": write_mlpackage}
READERS = {"aimodel": read_aimodel, "mlpackage": read_mlpackage}
PRIMARY = "aimodel"


class AppleBackend:
    """The backend of ``apple/<chip>``; see ``targets.contract.Backend``."""

    vendor = VENDOR
    engines: Mapping[str, tuple[str, ExecutedBy]] = {
        "aimodel": ("Core AI runtime on Linux, float32 accumulation", "emulated"),
        "mlpackage": ("MIL interpreter, float16", "emulated"),
    }

    @cached_property
    def _legality(self) -> Legality:
        return Legality.read(Path(__file__).parent / "legality.toml")

    def targets(self) -> Sequence[Target]:
        """Every chip of ``chips.toml``."""
        return [Target(VENDOR, name) for name in chips()]

    def legality(self, target: Target) -> Legality:
        """The same for every chip: both formats are expanded by the operating system for what the chip has."""
        chip_of(target)
        return self._legality

    def missing(self) -> tuple[Diagnostic, ...]:
        """The packages of the two toolchains that are not installed."""
        return tuple(
            Diagnostic(
                "apple.toolchain-missing",
                Severity.ERROR,
                VENDOR,
                f"{module} is not installed",
                f"pip install '{requirement}'",
            )
            for module, requirement in PACKAGES.items()
            if importlib.util.find_spec(module) is None
        )

    def check(self, component: str, graph: ir.Model, target: Target) -> tuple[Diagnostic, ...]:
        """Lower `graph` into nothing: every node that can't be written, by name."""
        return tuple(check_graph(graph, component, self.legality(target).refused))

    def lower(self, request: CompileRequest) -> Lowered:
        """Write both programs into ``request.work``; ToolchainError naming every node that can't be written."""
        model = load_graph(request.pivot)
        found = self.check(request.component, model, request.target)
        errors = [d for d in found if d.severity is Severity.ERROR]
        if errors:
            listed = "; ".join(f"{d.where}: {d.why}" for d in errors)
            raise ToolchainError(listed, where=f"{request.target} {request.component}", fix=errors[0].fix)
        paths = {}
        for kind, write in WRITERS.items():
            paths[kind] = request.work / f"{request.component}.{kind}"
            write(model, request.component, paths[kind])
        return Lowered(paths, found)

    def compile(self, request: CompileRequest, lowered: Lowered) -> CompileResult:
        """Have each toolchain read its program back, check that weights stayed compressed, and hand the files over."""
        model = load_graph(request.pivot)
        expected = _compressed_elements(model)
        artifacts = []
        for kind, source in lowered.paths.items():
            elements, facts = READERS[kind](source)
            _check_compression(expected, elements, f"{request.target} {request.component}, {kind}")
            path = request.out / source.name
            if path.exists():
                shutil.rmtree(path)
            shutil.copytree(source, path)
            artifacts.append(Artifact(path, kind, size_of(path), sha256_path(path), kind == PRIMARY, facts))
        offload, diagnostics = lint(model, request.component, chip_of(request.target))
        return CompileResult(tuple(artifacts), offload, diagnostics)

    def execute(self, artifact: Artifact, target: Target, pivot: Path) -> Executor:
        """Core AI's runtime for ``.aimodel``, the MIL interpreter for ``.mlpackage``."""
        if artifact.kind == "aimodel":
            return CoreAIExecutor(artifact.path)
        from pocketport.targets.apple.mil_interpreter import MILExecutor  # needs torch, which takes its time

        model = load_graph(pivot)
        names = feature_names(model)
        sides = [{str(v.name): names[str(v.name)] for v in side} for side in (model.graph.inputs, model.graph.outputs)]
        return MILExecutor(artifact.path, *sides)


def _compressed_elements(model: ir.Model) -> Counter[str]:
    """How many weights of each integer type the pivot has; equal tensors count once, as the files keep them once."""
    dequantized = (constant(node.inputs[0]) for node in model.graph if node.op_type == "DequantizeLinear")
    stored = [(str(integers.dtype), integers) for integers in dequantized if integers is not None]
    for palette in stored_palettes(model.graph).values():
        stored.append((f"uint{palette.bits}", np.asarray(constant(palette.indices))))
    counts: Counter[str] = Counter()
    seen = set()
    for dtype, integers in stored:
        content = hashlib.sha256(np.ascontiguousarray(integers).tobytes()).digest()
        if dtype != "int32" and content not in seen:
            seen.add(content)
            counts[dtype] += integers.size
    return counts


def _check_compression(expected: Mapping[str, int], elements: Mapping[str, int], where: str) -> None:
    for dtype, count in expected.items():
        if elements.get(dtype, 0) < count:
            raise VerificationError(
                f"{count} {dtype} weights went in, {elements.get(dtype, 0)} came out: the toolchain expanded them",
                where=where, fix="use another weight format (w8c, w4c)",
            )  # fmt: skip
