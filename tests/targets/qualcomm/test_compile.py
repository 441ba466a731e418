"""The vendor's compiler and emulator on small graphs. Skipped without onnxruntime-qnn."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from pocketport.diagnostics import Severity
from pocketport.errors import InputError, ToolchainError
from pocketport.targets.contract import CompileRequest, CompileResult, Target
from pocketport.targets.qualcomm import backend
from pocketport.targets.qualcomm.compile import ddr_traffic
from pocketport.targets.qualcomm.context import read_context
from pocketport.targets.qualcomm.target import SOCS
from pocketport.workers import call_in_worker

from .blocks import decoder, normal, picture, table, vision
from .op_graphs import OPS
from .pivots import Sketch, run_on_cpu, sqnr_db

pytest.importorskip("onnxruntime_qnn")

PHONES = ("sm8450", "sm8550", "sm8650", "sm8750")


def request_for(folder: Path, pivot: onnx.ModelProto, soc: str = "sm8650") -> CompileRequest:
    for name in ("work", "out"):
        (folder / name).mkdir(parents=True)
    onnx.save(pivot, folder / "pivot.onnx")
    return CompileRequest("main", folder / "pivot.onnx", Target("qualcomm", soc), folder / "work", folder / "out")


def port(request: CompileRequest) -> CompileResult:
    return backend.compile(request, backend.lower(request))


def emulated_db(request: CompileRequest, result: CompileResult, sketch: Sketch) -> float:
    executor = backend.execute(result.artifacts[0], request.target, request.pivot)
    try:
        found = executor.run(sketch.feeds)
    finally:
        executor.close()
    expected = run_on_cpu(request.pivot, sketch.feeds)
    assert {k: (v.shape, v.dtype) for k, v in found.items()} == {k: (v.shape, v.dtype) for k, v in expected.items()}
    return min(sqnr_db(expected[name], found[name]) for name in expected)


@pytest.mark.parametrize(
    ("build", "soc", "least"),
    [
        (vision, "sm8650", 60), (vision, "sm8450", 45), (vision, "sm8350", 45), (decoder, "sm8650", 55),
        (decoder, "sm8450", 45), (decoder, "sm8850", 55), (table, "sm8350", 80), (picture, "sm8650", 55), (picture, "sm8450", 45),
    ],
)  # fmt: skip
def test_blocks_run_whole_on_the_accelerator(build, soc: str, least: float, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    sketch = Sketch()
    request = request_for(tmp_path, sketch.pivot(*build(sketch)), soc)
    result = port(request)
    assert result.offload is not None and result.offload.npu_ops == result.offload.total_ops > 0
    assert result.offload.source == "qnn compiler"
    facts = result.artifacts[0].facts
    assert facts["soc_model"] == SOCS[soc].model and facts["hexagon"] == f"v{SOCS[soc].arch}"
    assert result.estimates["ddr_read_bytes"] > 0
    assert emulated_db(request, result, sketch) > least


def test_blocked_weights_stay_exact(tmp_path: Path) -> None:
    sketch = Sketch()
    request = request_for(tmp_path, sketch.pivot(*decoder(sketch), block=32))
    result = port(request)
    assert result.diagnostics == () and emulated_db(request, result, sketch) > 55


@pytest.mark.parametrize("transposed", [0, 1])
def test_blocked_weights_with_a_bias_stay_exact(tmp_path: Path, transposed: int) -> None:
    sketch = Sketch()
    x = sketch.input("x", normal(sketch, 6, 64))
    weight = sketch.weight(*((96, 64) if transposed else (64, 96)), bits=4)
    layer = sketch.op("Gemm", x, weight, sketch.constant(normal(sketch, 96)), transB=transposed)
    request = request_for(tmp_path, sketch.pivot(layer, block=32))
    result = port(request)
    assert result.diagnostics == () and emulated_db(request, result, sketch) > 55


def test_each_phone_has_a_binary_of_its_own(tmp_path: Path) -> None:
    sketch = Sketch()
    pivot = sketch.pivot(*decoder(sketch))
    hashes = {port(request_for(tmp_path / soc, pivot, soc)).artifacts[0].facts["context_sha256"] for soc in PHONES}
    assert len(hashes) == len(PHONES)


@pytest.mark.parametrize("name", sorted(OPS))
def test_every_listed_op(name: str, tmp_path: Path) -> None:
    sketch = Sketch()
    pivot = sketch.pivot(sketch.op("Mul", OPS[name](sketch), sketch.constant(np.float32(0.5))))
    request = request_for(tmp_path, pivot)
    assert emulated_db(request, port(request), sketch) > 40


def test_a_refused_op_is_named_with_the_compilers_reason(tmp_path: Path) -> None:
    sketch = Sketch()
    x = sketch.op("Relu", sketch.input("x", np.ones((4, 8), np.float32)))
    result = port(request_for(tmp_path, sketch.pivot(sketch.op("Add", sketch.op("Sinh", x), x))))
    assert result.artifacts == () and result.offload is not None
    assert (result.offload.npu_ops, result.offload.total_ops) == (2, 3)
    assert [d.severity for d in result.diagnostics] == [Severity.ERROR]
    assert "sinh_1" in result.diagnostics[0].where and "not supported by QNN EP" in result.diagnostics[0].why


def test_the_bytes_do_not_depend_on_the_folder(tmp_path: Path) -> None:
    sketch = Sketch()
    pivot = sketch.pivot(*table(sketch))
    first, second = (
        call_in_worker("tests.targets.qualcomm.test_compile:port", request_for(tmp_path / folder, pivot), label=folder)
        for folder in ("a", "b/deeper")
    )
    assert first.artifacts[0].sha256 == second.artifacts[0].sha256


def test_the_compilers_estimate(tmp_path: Path) -> None:
    sketch = Sketch()
    request = request_for(tmp_path, sketch.pivot(*vision(sketch)))
    figures = backend.estimate(request, backend.lower(request))
    assert 0 < figures["sa8255p_us_low"] <= figures["sa8255p_us"] <= figures["sa8255p_us_high"]
    assert figures == backend.estimate(request, backend.lower(request))


def test_estimates_leave_what_was_lowered_as_it_is(tmp_path: Path) -> None:
    """At 16 bits an older chip is asked too, which needs another form of attention."""
    sketch = Sketch()
    request = request_for(tmp_path, sketch.pivot(*decoder(sketch)))
    lowered = backend.lower(request)
    before = {name: path.read_bytes() for name, path in lowered.paths.items()}
    figures = backend.estimate(request, lowered)
    assert figures["sa8540p_us"] > 0
    assert {name: path.read_bytes() for name, path in lowered.paths.items()} == before
    assert figures == backend.estimate(request, lowered)


def test_ddr_figures_come_from_the_log() -> None:
    log = ["spill_bytes=0", "read_total_bytes=4096", "<V> DDRTensorSize=9728", "other_bytes=7"]
    assert ddr_traffic(log) == {"ddr_spill_bytes": 0.0, "ddr_read_bytes": 4096.0}


def test_damage_is_told(tmp_path: Path) -> None:
    sketch = Sketch()
    request = request_for(tmp_path, sketch.pivot(*table(sketch)))
    artifact = port(request).artifacts[0]
    binary = artifact.path / "main.bin"
    assert read_context(binary).differences(SOCS["sm8650"]) == ""
    assert "soc_model 57, asked 43" in read_context(binary).differences(SOCS["sm8550"])
    binary.write_bytes(b"not a context")
    with pytest.raises(InputError, match="not a QNN context"):
        read_context(binary)
    with pytest.raises(ToolchainError, match="does not load"):
        backend.execute(artifact, request.target, request.pivot)
    with pytest.raises(InputError, match="not a compiled component"):
        backend.execute(replace(artifact, path=tmp_path), request.target, request.pivot)
    assert set(json.loads((artifact.path / "io.json").read_text())) == {
        next(iter(run_on_cpu(request.pivot, sketch.feeds)))
    }
