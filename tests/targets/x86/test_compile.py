"""Artifacts, with and without OpenVINO and with a host that can't measure."""

from pathlib import Path

import onnx
import pytest

from pocketport.compress.schemes import Scheme
from pocketport.diagnostics import Severity
from pocketport.targets import conformance_graphs as graphs
from pocketport.targets.contract import CompileRequest, Target
from pocketport.targets.x86 import backend
from pocketport.targets.x86 import target as hosts
from pocketport.targets.x86.compile import compile_component, lower_component


@pytest.fixture
def request_for(tmp_path: Path) -> CompileRequest:
    target = Target("x86", "generic")
    legality = backend.legality(target)
    onnx.save(graphs.quantize(graphs.transformer(), Scheme.parse("w4b32fp32"), legality), tmp_path / "main.onnx")
    request = CompileRequest("main", tmp_path / "main.onnx", target, tmp_path / "work", tmp_path / "out")
    request.work.mkdir()
    request.out.mkdir()
    return request


def test_int4_stays_packed_in_both_artifacts(request_for: CompileRequest) -> None:
    pytest.importorskip("openvino")
    result = backend.compile(request_for, backend.lower(request_for))
    assert {artifact.kind for artifact in result.artifacts} == {"onnx", "openvino-ir"}
    weights = 4 * 64 * 64 + 2 * 64 * 128  # of the six layers, two to the byte
    for artifact in result.artifacts:
        assert weights / 2 <= artifact.facts["packed_int4_bytes"] < weights / 2 * 1.1  # type: ignore[operator]
    assert set(result.estimates) == {"onnx_ms", "openvino-ir_ms"}
    assert not result.diagnostics


def test_without_openvino_there_is_one_artifact(request_for: CompileRequest) -> None:
    lowered = lower_component(request_for, openvino=False)
    result = compile_component(request_for, lowered)
    assert [(artifact.kind, artifact.primary) for artifact in result.artifacts] == [("onnx", True)]


def test_a_host_that_lacks_instructions_compiles_and_says_so(
    request_for: CompileRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hosts, "_host", lambda: ("Some CPU", frozenset()))
    request = CompileRequest("main", request_for.pivot, Target("x86", "amx"), request_for.work, request_for.out)
    result = compile_component(request, lower_component(request, openvino=False))
    assert [d.severity for d in result.diagnostics] == [Severity.NOTE]
    assert "amx_tile" in result.diagnostics[0].why
    assert result.estimates == {}
