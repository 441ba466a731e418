"""``pocketport tune`` from the command line."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from typer.testing import CliRunner

from pocketport.cli import app
from pocketport.compress.ingest import ingest
from pocketport.errors import InputError, PocketportError
from pocketport.request import Request
from pocketport.running import open_model
from pocketport.targets.configuration import load_configuration
from tests.pocketport.hand_made_run import write_run


def test_a_run_is_tuned_and_opened_with_what_was_found(model: Path, data: Path, tmp_path: Path) -> None:
    write_run(tmp_path / "run", ingest(model))
    Request(source=str(model), targets=["x86"], data=str(data)).save(tmp_path / "run")
    result = CliRunner().invoke(app, ["tune", str(tmp_path / "run"), "--budget", "6s"])
    assert result.exit_code == 0, result.output
    assert "as it comes" in result.stdout and "x86.json" in result.stdout
    found = load_configuration(tmp_path / "run" / "x86.json")
    main = found.components["main"]
    document = json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))
    made = {a["path"]: a["sha256"] for a in document["targets"][0]["components"][0]["artifacts"]}
    assert made[main.artifact] == main.sha256
    sample = {"x": np.ones((1, 16), np.float32)}
    with open_model(tmp_path / "run") as opened:
        assert opened.configuration == found and opened.differences == ()
        tuned = opened.executors["main"].run(sample)["y"]
    (tmp_path / "run" / "x86.json").unlink()
    with open_model(tmp_path / "run") as opened:
        assert opened.configuration is None
        np.testing.assert_allclose(opened.executors["main"].run(sample)["y"], tuned, rtol=1e-3, atol=1e-3)


def opened(path: Path, model: Path) -> Path:
    """The model with an input whose first dimension is open."""
    proto = onnx.load(model)
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "batch"
    onnx.save(proto, path)
    return path


def test_an_onnx_file_with_an_open_shape(
    model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = opened(tmp_path / "open.onnx", model)
    command = ["tune", str(path), "--shape", "x=1,16", "--data", str(data), "--budget", "6s", "--json"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["schema"] == "pocketport.x86-configuration/1" and document["shapes"] == {"x": [1, 16]}
    assert load_configuration(tmp_path / "x86.json").model_dump(by_alias=True) == document
    contenders = document["components"]["main"]["contenders"]
    assert {c["settings"]["engine"] for c in contenders} == {"onnxruntime", "openvino"}
    for c in contenders:  # PERFORMANCE takes bfloat16 where the processor has it
        least = 40 if c["settings"].get("mode") == "PERFORMANCE" else 60
        assert c["fidelity_db"] > least, "every engine sees the shape and the data"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--budget", "60"], "not a number with one of the units"),
        (["--shape", "y=1,16"], "no input 'y'"),
        (["--shape", "x=1,17"], "its shape is [1,16]"),
        (["--target", "x86"], "neither"),
        (["--data", "other.npz"], "no array for the input x"),
        (["--data", "wide.npz"], "does not fit"),
    ],
)
def test_what_cannot_be_done_is_said(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    np.savez("other.npz", z=np.zeros((2, 16), np.float32))
    np.savez("wide.npz", x=np.zeros((2, 1, 17), np.float32))
    result = CliRunner().invoke(app, ["tune", str(model), *options])
    assert isinstance(result.exception, PocketportError), result.output
    assert words in result.exception.why
    assert not Path("x86.json").exists()


def test_open_shapes_are_asked_for(model: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["tune", str(opened(tmp_path / "open.onnx", model))])
    assert isinstance(result.exception, PocketportError) and "[?,16]" in result.exception.why


@pytest.mark.parametrize("text", ["", "[]", '{"schema": "pocketport.x86-configuration/2"}'])
def test_damaged_configurations_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "x86.json").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match="x86-configuration/1"):
        load_configuration(tmp_path / "x86.json")


def test_a_gguf_file_is_tuned_by_llama_cpps_own_programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pocketport.targets.x86.llama_cpp_search.thread_counts", lambda: (1,))
    program = tmp_path / "llama-bench"
    answer = '[{"avg_ns": 8000000, "build_number": 7, "build_commit": "abc"}]'
    program.write_text(f"#!/bin/sh\necho '{answer}'\n", encoding="utf-8")
    program.chmod(0o755)
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    command = [
        "tune",
        str(tmp_path / "model.gguf"),
        "--llama-cpp",
        str(tmp_path),
        "--answer-tokens",
        "16",
        "--budget",
        "3s",
    ]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert "decode of 16 tokens" in result.stdout and " 2000 " in result.stdout, "16 tokens in 8 ms are 2000 a second"
    found = load_configuration(tmp_path / "llama-cpp.json")
    assert found.shapes == {"prefill": [512], "decode": [16]} and found.engines == {"llama.cpp": "7 (abc)"}
    for wrong in (["tune", str(tmp_path / "none.gguf")], [*command, "--target", "x86"]):
        assert isinstance(CliRunner().invoke(app, wrong).exception, PocketportError)
