"""Targets, the plugin's lint, compiling ahead of time, and what is said when parts are missing."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from pocketport.compress.schemes import Scheme
from pocketport.diagnostics import Severity
from pocketport.errors import ToolchainError, UsageError
from pocketport.targets import conformance_graphs as graphs
from pocketport.targets.contract import Artifact, CompileRequest, CompileResult, Target
from pocketport.targets.mediatek import backend, plugin
from pocketport.targets.mediatek.target import SOCS

pytest.importorskip("ai_edge_litert")

DIMENSITY_9300 = Target.parse("mediatek/mt6989")
needs_compiler = pytest.mark.skipif(plugin.c_compiler() is None, reason="needs a C compiler")


def compiled(model: onnx.ModelProto, folder: Path, target: Target = DIMENSITY_9300) -> CompileResult:
    for name in ("work", "out"):
        (folder / name).mkdir()
    onnx.save(model, folder / "pivot.onnx")
    request = CompileRequest("main", folder / "pivot.onnx", target, folder / "work", folder / "out")
    return backend.compile(request, backend.lower(request))


def block() -> onnx.ModelProto:
    return graphs.quantize(graphs.transformer(), Scheme.parse("w8a16"), backend.legality(DIMENSITY_9300))


def lookup() -> onnx.ModelProto:
    """Gather, which the plugin leaves to the CPU, between two ops that it takes."""
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["rows"], name="rows"),
        helper.make_node("Softmax", ["rows"], ["y"], name="y"),
    ]
    graph = helper.make_graph(
        nodes, "lookup", [helper.make_tensor_value_info("ids", TensorProto.INT32, (3,))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (3, 8))],
        [numpy_helper.from_array(np.ones((5, 8), np.float32), "table")],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=11)


def test_every_soc_of_the_installed_plugin_is_known() -> None:
    from ai_edge_litert.aot.vendors.mediatek import target as theirs

    models = {m for m in theirs.SocModel if m.name != "ALL"}
    assert {m.value.lower() for m in models} == set(SOCS)
    assert all(theirs.map_soc_to_np_version(m) == SOCS[m.value.lower()].neuropilot for m in models)


def test_unknown_soc_names_the_nearest() -> None:
    with pytest.raises(UsageError) as caught:
        backend.legality(Target.parse("mediatek/mt6998"))
    assert "mt6989" in caught.value.fix


@needs_compiler
@pytest.mark.parametrize("soc", ["mt6989", "mt6993"])
def test_lint_takes_a_whole_block(soc: str, tmp_path: Path) -> None:
    result = compiled(block(), tmp_path, Target.parse(f"mediatek/{soc}"))
    assert result.offload is not None
    assert result.offload.npu_ops == result.offload.total_ops > 30
    assert "stand-in" in result.offload.source and "upper bound" in result.offload.source
    assert [a.kind for a in result.artifacts] == ["tflite"]
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["main.tflite"]
    assert any(d.code == "mediatek.no-sdk" and d.severity is Severity.NOTE for d in result.diagnostics)


@needs_compiler
def test_lint_names_what_stays_on_the_cpu(tmp_path: Path) -> None:
    offload = compiled(lookup(), tmp_path).offload
    assert offload is not None
    assert (offload.npu_ops, offload.total_ops, offload.elsewhere) == (1, 2, ("GATHER → rows",))


def test_without_a_c_compiler_there_is_no_offload_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugin, "c_compiler", lambda: None)
    result = compiled(lookup(), tmp_path)
    assert result.offload is None
    assert "mediatek.no-c-compiler" in {d.code for d in result.diagnostics}


@needs_compiler
def test_an_installed_sdk_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the stand-in in the SDK's place: the road is walked to its end, only the binary is empty."""
    libraries = tmp_path / "sdk"
    (libraries / "v8").mkdir(parents=True)
    source = Path(plugin.__file__).with_name("stand_in_adapter.c")
    subprocess.run(
        [str(plugin.c_compiler()), "-shared", "-fPIC", "-o", str(libraries / "v8" / plugin.ADAPTER), str(source)],
        check=True,
    )
    package = f"import pathlib\ndef path_to_sdk_libs(version):\n    return pathlib.Path({str(libraries)!r}) / version\n"
    (tmp_path / f"{plugin.SDK_PACKAGE}.py").write_text(package)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, plugin.SDK_PACKAGE, raising=False)

    result = compiled(lookup(), tmp_path)
    assert [(a.kind, a.primary) for a in result.artifacts] == [("tflite", True), ("tflite-npu", False)]
    assert result.offload is not None and result.offload.source == "MediaTek compiler"
    with pytest.raises(UsageError, match="NPU only"):
        backend.execute(result.artifacts[1], DIMENSITY_9300, tmp_path / "pivot.onnx")
    monkeypatch.delitem(sys.modules, plugin.SDK_PACKAGE, raising=False)


def test_a_refusing_compiler_is_quoted(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    compiled(lookup(), tmp_path)
    with pytest.raises(ToolchainError, match="NeuronAdapter"):
        plugin.compile_ahead(
            tmp_path / "out" / "main.tflite", tmp_path / "npu.tflite", SOCS["mt6989"], tmp_path / "empty"
        )


def test_missing_litert_is_an_error_with_its_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(plugin, "has_litert", lambda: False)
    found = {d.code: d for d in backend.missing()}
    assert found["mediatek.no-litert"].severity is Severity.ERROR
    assert "pip install" in found["mediatek.no-litert"].fix
    request = CompileRequest("main", tmp_path / "none.onnx", DIMENSITY_9300, tmp_path, tmp_path)
    with pytest.raises(ToolchainError, match="not installed"):
        backend.lower(request)


def test_facts_are_read_from_the_file(tmp_path: Path) -> None:
    artifact: Artifact = compiled(block(), tmp_path).artifacts[0]
    assert artifact.facts["ops"] == 39
    assert artifact.facts["transposes"] == 4
