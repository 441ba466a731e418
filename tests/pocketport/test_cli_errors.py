"""What users get wrong: a typed error on one screen, the right exit code, nothing half-written."""

import json
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pocketport import cli
from pocketport.commands import console
from pocketport.diagnostics import Diagnostic, Severity
from tests.pocketport.conftest import perceptron

TARGET = ("--target", "x86")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Run the CLI as a user would; its exit code and everything it printed."""

    def call(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(console.err, "width", 200)
        monkeypatch.setattr("sys.argv", ["pocketport", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        captured = capfd.readouterr()
        text = captured.out + captured.err
        assert "Traceback" not in text
        assert len(text.splitlines()) < 40
        return int(stop.value.code or 0), " ".join(text.replace("│", " ").split())

    return call


Run = Callable[..., tuple[int, str]]


def test_truncated_onnx(run: Run, model: Path, data: Path, tmp_path: Path) -> None:
    model.write_bytes(model.read_bytes()[:-700])
    code, text = run("port", model, *TARGET, "--data", data, "--out", tmp_path / "out")
    assert code == 2
    assert "InputError" in text and "perceptron.onnx" in text


def test_safetensors_with_a_lying_header(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    config = {
        "model_type": "bert", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64,
        "vocab_size": 50, "max_position_embeddings": 16, "type_vocab_size": 2, "layer_norm_eps": 1e-12, "hidden_act": "gelu",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", 100 << 30) + b"{}")
    code, text = run("inspect", folder)
    assert code == 2
    assert "InputError" in text and "model.safetensors" in text


def test_unknown_op(run: Run, data: Path, tmp_path: Path) -> None:
    model = perceptron(tmp_path / "odd.onnx", op="Frobnicate")
    code, text = run("port", model, *TARGET, "--data", data, "--out", tmp_path / "out")
    assert code == 2
    assert "Frobnicate" in text and "middle" in text


def test_op_that_a_target_cannot_take_is_named(run: Run, tmp_path: Path) -> None:
    model = perceptron(tmp_path / "sinh.onnx", op="Sinh")
    code, text = run("inspect", model, "--target", "qualcomm/sm8650", "--target", "mediatek/mt6989")
    assert code == 1
    assert "middle" in text and "Sinh" in text


def test_unknown_soc(run: Run, model: Path, data: Path, tmp_path: Path) -> None:
    code, text = run("port", model, "--target", "qualcomm/sm8560", "--data", data, "--out", tmp_path / "out")
    assert code == 2
    assert "UsageError" in text and "sm8560" in text and "sm8650" in text


def test_unknown_vendor(run: Run, model: Path, tmp_path: Path) -> None:
    code, text = run("port", model, "--target", "qualcom/sm8650", "--out", tmp_path / "out")
    assert code == 2
    assert "qualcomm" in text


def test_misspelt_recipe_key(run: Run, model: Path, data: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("version: 1\nname: mine\nrules:\n  - {component: main, shceme: w8a8}\n")
    code, text = run("port", model, *TARGET, "--data", data, "--recipe", recipe, "--out", tmp_path / "out")
    assert code == 2
    assert "shceme" in text and "did you mean scheme?" in text


def test_unknown_recipe(run: Run, model: Path, data: Path, tmp_path: Path) -> None:
    code, text = run("port", model, *TARGET, "--data", data, "--recipe", "defualt", "--out", tmp_path / "out")
    assert code == 2
    assert "did you mean default or careful?" in text


def test_empty_calibration_folder(run: Run, model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "empty"
    folder.mkdir()
    code, text = run("port", model, *TARGET, "--data", folder, "--out", tmp_path / "out")
    assert code == 2
    assert "InputError" in text and "empty" in text


def test_no_data(run: Run, model: Path, tmp_path: Path) -> None:
    code, text = run("port", model, *TARGET, "--out", tmp_path / "out")
    assert code == 2
    assert "--data" in text and "x [1, 16]" in text


def test_data_of_another_shape(run: Run, model: Path, tmp_path: Path) -> None:
    path = tmp_path / "wrong.npz"
    np.savez(path, x=np.zeros((4, 1, 17), np.float32))
    code, text = run("port", model, *TARGET, "--data", path, "--out", tmp_path / "out")
    assert code == 2
    assert "wrong.npz" in text and "array x" in text


def test_data_with_nan(run: Run, model: Path, tmp_path: Path) -> None:
    path = tmp_path / "nan.npz"
    np.savez(path, x=np.full((4, 1, 16), np.nan, np.float32))
    code, text = run("port", model, *TARGET, "--data", path, "--out", tmp_path / "out")
    assert code == 2
    assert "NaN" in text


def test_no_target(run: Run, model: Path, data: Path, tmp_path: Path) -> None:
    code, text = run("port", model, "--data", data, "--out", tmp_path / "out")
    assert code == 2
    assert "--target" in text


def test_gate_without_a_run(run: Run, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    code, text = run("gate", tmp_path / "empty", "--budget", "default")
    assert code == 2
    assert "UsageError" in text


def test_json_errors_are_documents(run: Run, tmp_path: Path) -> None:
    code, text = run("inspect", tmp_path / "none.onnx", "--json")
    assert code == 2
    document = json.loads(text)
    assert document["schema"] == "pocketport.error/1"
    assert set(document) == {"schema", "kind", "where", "why", "fix"}


def test_a_place_that_cannot_be_written(run: Run, model: Path) -> None:
    code, text = run("ingest", model, "--out", model / "out")
    assert code == 2
    assert "UsageError" in text and "perceptron.onnx/out" in text and "not a directory" in text


def test_a_file_that_is_no_checkpoint(run: Run, model: Path) -> None:
    code, text = run("plan", model, "--format", "gguf:q4_k_m")
    assert code == 2
    assert "not a checkpoint" in text and ".gguf file" in text


def test_a_run_that_was_cut_short(run: Run, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"schema": "pocketport.run/1", "model": {')
    code, text = run("report", tmp_path)
    assert code == 2
    assert "InputError" in text and "Invalid JSON" in text and "pydantic" not in text


def test_a_request_of_another_kind(run: Run, tmp_path: Path) -> None:
    (tmp_path / "request.json").write_text('{"source": "reference", "task_samples": "many"}')
    code, text = run("verify", tmp_path)
    assert code == 2
    assert "request.json, task_samples" in text and "integer" in text and "pydantic" not in text


def test_unknown_device(run: Run) -> None:
    code, text = run("devices", "show", "nothing")
    assert code == 2
    assert "use one of" in text and "pocketport devices list" in text and "iphone-12" not in text


def test_a_long_diagnostic_keeps_its_indent(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(console.err, "width", 60)
    console.print_diagnostics([Diagnostic("x", Severity.NOTE, "here", "why [a] " * 12, "fix " * 30)])
    first, *others = capfd.readouterr().err.splitlines()
    assert first == "note x here"
    assert len(others) > 4 and all(line.startswith("    ") and len(line) <= 60 for line in others)
    assert "why [a]" in others[0]
