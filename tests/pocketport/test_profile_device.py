"""``pocketport profile --device`` and ``pocketport devices`` from the command line."""

import json
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper, save
from typer.testing import CliRunner

from pocketport.cli import app
from pocketport.latency import predict_latency


@pytest.fixture(scope="module")
def onnx_files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Six stacks of convolutions, each twice as wide as the one before."""
    folder, files = tmp_path_factory.mktemp("models"), []
    for index in range(6):
        width = 8 * 2**index
        weights = [np.zeros((width, 3 if i == 0 else width, 3, 3), np.float32) for i in range(4)]
        nodes = [helper.make_node("Conv", [f"x{i}", f"w{i}"], [f"x{i + 1}"], pads=[1, 1, 1, 1]) for i in range(4)]
        graph = helper.make_graph(
            nodes, "g", [helper.make_tensor_value_info("x0", TensorProto.FLOAT, (1, 3, 32, 32))],
            [helper.make_tensor_value_info("x4", TensorProto.FLOAT, (1, width, 32, 32))],
            [numpy_helper.from_array(w, f"w{i}") for i, w in enumerate(weights)],
        )  # fmt: skip
        files.append(folder / f"m{index}.onnx")
        save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)]), files[-1])
    return files


def run(*arguments: str) -> dict:
    result = CliRunner().invoke(app, [*arguments, "--json"])
    assert result.exit_code == 0, result.output
    document: dict = json.loads(result.output)
    return document


def test_a_model_on_a_phone_that_was_never_measured(onnx_files: list[Path]) -> None:
    command = ("profile", str(onnx_files[3]), "--device", "galaxy-s25", "--precision", "w8a8", "--runtime", "qnn_dlc")
    found = run(*command, "--quick")
    assert found["schema"] == "pocketport.latency/1"
    assert found["target"] == "qualcomm/sm8750"
    assert (found["predictor"], found["level"]) == ("graph", 0.9)
    assert 0 < found["low"] < found["ms"] < found["high"]
    assert found["components"][0]["graph_only"]["ms"] == found["ms"]
    assert any("not measured" in w for w in found["warnings"])


def test_wider_models_are_slower(onnx_files: list[Path]) -> None:
    times = [predict_latency(f, "galaxy-s24", quick=True).components[0].chosen.ms for f in onnx_files]
    assert times == sorted(times)


def test_a_device_fitted_to_five_models(
    onnx_files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POCKETPORT_DEVICES", str(tmp_path / "devices"))
    known = {f: predict_latency(f, "galaxy-s24", quick=True).components[0].chosen.ms for f in onnx_files}
    rows = "".join(f"{f},float,{2 * known[f]}\n" for f in onnx_files[:5])
    (tmp_path / "times.csv").write_text("model,precision,ms\n" + rows)
    fitted = run("devices", "fit", "Bench Phone", "--measurements", str(tmp_path / "times.csv"))
    assert fitted["factors"]["float"]["n"] == 5
    mine = run("profile", str(onnx_files[5]), "--device", "bench-phone", "--quick")
    assert mine["ms"] == pytest.approx(2 * known[onnx_files[5]], rel=0.2)
    assert "local/bench-phone" in [d["target"] for d in run("devices", "list")["devices"]]


def test_devices_are_listed_shown_and_compared() -> None:
    listed = {d["target"]: d["latency"] for d in run("devices", "list")["devices"]}
    assert listed["qualcomm/sm8650"] == "measurements"
    assert listed["qualcomm/sm8750"].startswith("like ")
    assert listed["x86/core-i7-1260p"] == "nothing"
    shown = run("devices", "show", "galaxy-s24")
    assert shown["dram_gbps"]["certainty"] == "certain"
    compared = run("devices", "compare", "galaxy-s24", "galaxy-s26")["devices"]
    assert compared["qualcomm/sm8650"]["float matrix"] == "1.00x"
    assert compared["qualcomm/sm8850"]["float matrix"] < "1.00x"


@pytest.mark.parametrize(
    "arguments",
    [("--device", "nokia-3310"), ("--device", "galaxy-s24", "--precision", "w9"), ("--device", "ryzen-7-7840u"), ()],
)
def test_mistakes_are_usage_errors(onnx_files: list[Path], arguments: tuple[str, ...]) -> None:
    result = CliRunner().invoke(app, ["profile", str(onnx_files[0]), "--quick", *arguments])
    assert result.exit_code != 0
    assert type(result.exception).__name__ == "UsageError"
