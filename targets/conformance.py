"""The conformance suite: what every backend must do. It needs pytest.

A backend, built in or of a third party, is tested by a subclass in a test module::

    class TestMyChip(BackendConformance):
        factory = "my_package:backend"
        target = "my/chip"
        packages = ("my_sdk",)
"""

import importlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from importlib import metadata
from pathlib import Path
from typing import ClassVar

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from pocketport.calibration.metrics import sqnr_db
from pocketport.compress.schemes import Scheme
from pocketport.diagnostics import Diagnostic, Severity
from pocketport.errors import UsageError
from pocketport.files import sha256_path, size_of
from pocketport.profiles.measurement import Measurement
from pocketport.targets import conformance_graphs as graphs
from pocketport.targets.contract import (
    Arrays,
    Artifact,
    Backend,
    CompileRequest,
    CompileResult,
    Lowered,
    MeasuringBackend,
    Target,
)
from pocketport.workers import Worker, call_in_worker

CASES: Mapping[str, tuple[str, str]] = {  # case → (graph builder, role whose default scheme is used)
    "cnn": ("convolutional", "main"),
    "transformer": ("transformer", "vision"),
    "language": ("transformer", "prefill"),
}
ROUNDING_DB = {8: 30.0, 16: 45.0}  # by activation bits: integer kernels round where the reference computes in float
FLOAT_DB = {16: 40.0, 32: 60.0}  # by float width, when activations are not quantized


class BackendConformance:
    """Subclass it and set the attributes.

    Attributes:
        factory: ``module:attribute`` of the Backend.
        target: a target that this machine can compile and execute for.
        packages: top-level packages of the vendor's toolchain; without them `missing` has something to say.
        minimum_db: case → decibels, where the vendor's own rounding asks for another bound than the default.
    """

    factory: ClassVar[str]
    target: ClassVar[str]
    packages: ClassVar[tuple[str, ...]] = ()
    minimum_db: ClassVar[Mapping[str, float]] = {}

    @pytest.fixture(scope="class")
    def backend(self) -> Backend:
        """The backend; skips the class where its toolchain is not installed."""
        backend = load_backend(self.factory)
        if backend.missing() and any(d.severity is Severity.ERROR for d in backend.missing()):
            pytest.skip(f"{backend.vendor}: {backend.missing()[0].why}")
        return backend

    @pytest.fixture(scope="class")
    def worker(self, backend: Backend) -> Iterator[Worker]:
        """One worker for the class: the vendor's code never runs in the test's own process."""
        with Worker("pocketport.targets.conformance:Bench", self.factory, label=f"{self.target} conformance") as worker:
            yield worker

    @pytest.fixture(scope="class", params=sorted(CASES))
    def compiled(
        self, request: pytest.FixtureRequest, backend: Backend, worker: Worker, tmp_path_factory: pytest.TempPathFactory
    ) -> "Compiled":
        """A case, lowered and compiled once for all tests."""
        return build(request.param, backend, worker, Target.parse(self.target), tmp_path_factory.mktemp("conformance"))

    def test_it_is_a_backend(self, backend: Backend) -> None:
        """It has the contract's methods, and honest engines."""
        assert isinstance(backend, Backend)
        assert Target.parse(self.target).vendor == backend.vendor
        assert all(provenance in ("measured", "emulated") for _, provenance in backend.engines.values())

    def test_targets_are_identities(self, backend: Backend) -> None:
        """Targets are unique and survive being written and parsed."""
        targets = backend.targets()
        assert len(set(targets)) == len(targets) > 0
        for target in targets:
            assert Target.parse(str(target)) == target
            assert target.vendor == backend.vendor

    def test_an_unknown_soc_is_a_usage_error(self, backend: Backend) -> None:
        """A SoC that does not exist is refused by name, with what to do."""
        with pytest.raises(UsageError) as caught:
            backend.legality(Target(backend.vendor, "no-such-chip"))
        assert "no-such-chip" in str(caught.value) and caught.value.fix

    def test_legality_takes_its_own_defaults(self, backend: Backend) -> None:
        """The default schemes are legal."""
        for target in backend.targets():
            legality = backend.legality(target)
            for role in ("vision", "connector", "embed", "prefill", "decode", "main", "head"):
                scheme = Scheme.parse(legality.defaults[role])
                if scheme.weight_bits is not None:
                    rule = legality.weights[str(scheme.weight_bits)]
                    assert scheme.granularity.value in rule.granularities
                    assert not scheme.block or scheme.block in rule.blocks
                assert scheme.activation_bits is None or str(scheme.activation_bits) in legality.activations

    def test_check_takes_what_it_compiles(self, backend: Backend) -> None:
        """`check` has no objection to the suite's own graphs."""
        for make in (graphs.convolutional, graphs.transformer):
            found = backend.check("main", ir.from_proto(make().model), Target.parse(self.target))
            assert [d for d in found if d.severity is Severity.ERROR] == []

    def test_check_names_the_node_that_it_refuses(self, backend: Backend) -> None:
        """An op that nobody knows gives one error with the node's name."""
        found = backend.check("main", ir.from_proto(_with_unknown_op()), Target.parse(self.target))
        errors = [d for d in found if d.severity is Severity.ERROR]
        assert len(errors) == 1
        assert "strange.node" in errors[0].where and errors[0].why and errors[0].fix
        assert errors[0].code.startswith(f"{backend.vendor}.")

    def test_a_missing_toolchain_is_a_diagnostic(self, backend: Backend) -> None:
        """Without a package of the toolchain `missing` says what to install, and importing still works."""
        for package in self.packages:
            found = call_in_worker(
                "pocketport.targets.conformance:missing_without", self.factory, package, label="missing toolchain"
            )
            assert len(found) > len(backend.missing()), f"nothing said about {package}"
            assert all(d.fix and d.code.startswith(f"{backend.vendor}.") for d in found)

    def test_artifacts_are_what_they_say(self, backend: Backend, compiled: "Compiled") -> None:
        """One primary artifact; sizes and hashes are true; paths lie where they were asked for."""
        artifacts = compiled.result.artifacts
        assert sum(artifact.primary for artifact in artifacts) == 1
        for artifact in artifacts:
            assert artifact.kind in backend.engines
            assert artifact.path.is_relative_to(compiled.request.out)
            assert artifact.bytes == size_of(artifact.path) > 0
            assert artifact.sha256 == sha256_path(artifact.path)
        offload = compiled.result.offload
        assert offload is None or 0 <= offload.npu_ops <= offload.total_ops

    def test_it_computes_what_the_pivot_says(self, compiled: "Compiled", worker: Worker) -> None:
        """Each artifact, executed, gives the pivot's outputs within the bound, twice the same."""
        expected = graphs.reference(onnx.load(compiled.request.pivot), compiled.feeds)
        bound = self.minimum_db.get(compiled.case, compiled.bound_db)
        for artifact in compiled.result.artifacts:
            first, second = worker.call("run_twice", artifact, compiled.request, compiled.feeds)
            assert set(first) == set(expected)
            for name, values in expected.items():
                assert first[name].shape == values.shape and first[name].dtype == values.dtype
                np.testing.assert_array_equal(first[name], second[name], err_msg="two runs differ")
                assert sqnr_db(values, first[name]) >= bound, f"{artifact.kind}, output {name}"

    def test_a_measuring_backend_measures(self, backend: Backend, compiled: "Compiled", worker: Worker) -> None:
        """Measured figures have a value, a spread and a source."""
        if not isinstance(backend, MeasuringBackend):
            pytest.skip("figures of this target are predicted")
        for artifact in compiled.result.artifacts:
            for figure in worker.call("measure", artifact, compiled.request, compiled.feeds):
                assert figure.value > 0 and figure.provenance.kind == "measured" and figure.provenance.detail
                assert figure.low is None or figure.low <= figure.value <= figure.high

    def test_the_same_pivot_gives_the_same_bytes(
        self, compiled: "Compiled", backend: Backend, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        """A second compile in another process gives the same bytes."""
        if compiled.case != "cnn":
            pytest.skip("one graph is enough")
        with Worker("pocketport.targets.conformance:Bench", self.factory, label="second compile") as fresh:
            again = build(compiled.case, backend, fresh, compiled.request.target, tmp_path_factory.mktemp("again"))
        assert [a.sha256 for a in again.result.artifacts] == [a.sha256 for a in compiled.result.artifacts]


class Compiled:
    """A case that went through `lower` and `compile`."""

    def __init__(
        self, case: str, scheme: Scheme, request: CompileRequest, result: CompileResult, feeds: Arrays
    ) -> None:
        self.case, self.request, self.result, self.feeds = case, request, result, feeds
        bits = scheme.activation_bits
        self.bound_db = ROUNDING_DB[bits] if bits else FLOAT_DB[scheme.float_bits]


class Bench:
    """The worker's side: the backend, and what the suite asks of it."""

    def __init__(self, factory: str) -> None:
        self._backend = load_backend(factory)

    def build(self, request: CompileRequest) -> tuple[Lowered, CompileResult]:
        """Lower and compile."""
        lowered = self._backend.lower(request)
        return lowered, self._backend.compile(request, lowered)

    def run_twice(
        self, artifact: Artifact, request: CompileRequest, feeds: Arrays
    ) -> tuple[dict[str, NDArray[np.generic]], dict[str, NDArray[np.generic]]]:
        """Execute twice on the same feeds, then close."""
        with closing(self._backend.execute(artifact, request.target, request.pivot)) as executor:
            return executor.run(feeds), executor.run(feeds)

    def measure(self, artifact: Artifact, request: CompileRequest, feeds: Arrays) -> Sequence[Measurement]:
        """Measure a few runs."""
        assert isinstance(self._backend, MeasuringBackend)
        return self._backend.measure(request.component, artifact, request.target, feeds, runs=3, warmup=1)


def build(case: str, backend: Backend, worker: Worker, target: Target, folder: Path) -> Compiled:
    """Write the pivot of a case and bring it to the target in the worker."""
    maker, role = CASES[case]
    graph: graphs.FloatGraph = getattr(graphs, maker)()
    legality = backend.legality(target)
    scheme = Scheme.parse(legality.defaults[role])
    request = CompileRequest(case, folder / f"{case}.onnx", target, folder / "work", folder / "out")
    request.work.mkdir()
    request.out.mkdir()
    onnx.save(graphs.quantize(graph, scheme, legality), request.pivot)
    lowered, result = worker.call("build", request)
    assert lowered.paths and all(path.exists() for path in lowered.paths.values())
    return Compiled(case, scheme, request, result, graph.feeds)


def load_backend(factory: str) -> Backend:
    """The object at ``module:attribute``."""
    module, _, attribute = factory.partition(":")
    backend: Backend = getattr(importlib.import_module(module), attribute)
    return backend


def missing_without(factory: str, package: str) -> tuple[Diagnostic, ...]:
    """What `missing` says in a process that has neither the module `package` nor its distribution."""
    hidden = {name.lower() for name in metadata.packages_distributions().get(package, ())}
    find = metadata.Distribution.from_name

    def from_name(name: str) -> metadata.Distribution:
        if name.lower() in hidden:
            raise metadata.PackageNotFoundError(name)
        return find(name)

    metadata.Distribution.from_name = from_name  # type: ignore[method-assign]
    sys.modules[package] = None  # type: ignore[assignment]
    return load_backend(factory).missing()


def _with_unknown_op() -> onnx.ModelProto:
    node = helper.make_node("Wobble", ["x"], ["y"], name="strange.node", domain="nowhere.example")
    info = [helper.make_tensor_value_info(name, TensorProto.FLOAT, (1, 8)) for name in ("x", "y")]
    graph = helper.make_graph([node], "unknown", info[:1], info[1:])
    opsets = [helper.make_opsetid("", graphs.OPSET), helper.make_opsetid("nowhere.example", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=graphs.IR_VERSION)
