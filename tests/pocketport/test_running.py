"""``pocketport run`` on a small run of the reference model: float graphs, onnxruntime's artifacts."""

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from pocketport.calibration.sources.rendered_text import RenderedText
from pocketport.cli import app
from pocketport.compress.executors.ort_executor import OrtExecutor
from pocketport.compress.families.registry import chat_of
from pocketport.compress.ingest import ingest
from pocketport.errors import InputError, PocketportError, UsageError
from pocketport.running import TextStream, answer, open_model
from pocketport.targets.configuration import ComponentConfiguration, Configuration
from tests.pocketport.hand_made_run import write_run

SAMPLES = RenderedText(seed=61_000, fonts="held_out")
SETTINGS = {"engine": "onnxruntime", "threads": 1, "spinning": False, "matmul_add_fusion": False}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("run"), ingest("reference"))


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("image") / "text.png"
    SAMPLES[0].image.save(path)
    return path


def tuned(directory: Path, **changes: str) -> Configuration:
    """A configuration for every component of a run."""
    document = json.loads((directory / "run.json").read_text(encoding="utf-8"))
    components = {
        c["name"]: ComponentConfiguration.model_validate({
            "kind": "onnx", "artifact": c["artifacts"][0]["path"], "sha256": c["artifacts"][0]["sha256"],
            "settings": SETTINGS, "tried": 1, "turns": 6, "least_db": 40.0, **changes,
        })
        for c in document["targets"][0]["components"]
    }  # fmt: skip
    return Configuration(processor="Some CPU", threads=1, engines={}, components=components)


def test_it_answers_as_the_pivots_greedy_decode(directory: Path) -> None:
    bundle = ingest("reference")
    factory = chat_of(bundle)
    assert factory is not None
    reference = factory({c.name: OrtExecutor(c.graph) for c in bundle}, bundle.config, bundle.files)
    with open_model(directory) as model:
        for sample in SAMPLES.take(2):
            expected = reference.read(sample.image, sample.prompt)
            pieces: list[str] = []
            read, speed = answer(model, sample.image, sample.prompt, None, pieces.append)
            assert read.token_ids == expected.token_ids and len(read.token_ids) > 2
            assert "".join(pieces) == read.text == expected.text and len(pieces) > 1
            assert 0 < speed.image_ms < speed.first_token_ms < speed.total_ms
            assert speed.tokens_per_second is not None and speed.tokens_per_second > 0


def test_the_command_streams_and_the_document_says_how_fast(directory: Path, image: Path, tmp_path: Path) -> None:
    command = ["run", str(directory), "--image", str(image), "--prompt", SAMPLES[0].prompt]
    plain = CliRunner().invoke(app, command)
    assert plain.exit_code == 0, plain.output
    assert "tokens/s" in plain.stderr and "first token" in plain.stderr
    tuned(directory).save(tmp_path / "mine.json")
    shown = CliRunner().invoke(
        app, [*command, "--json", "--max-tokens", "2", "--configuration", str(tmp_path / "mine.json")]
    )
    document = json.loads(shown.stdout)
    assert document["schema"] == "pocketport.answer/1" and document["tuned"]
    assert len(document["token_ids"]) == 2
    assert plain.stdout.startswith(document["text"]) and document["text"]
    assert "Some CPU" in shown.stderr
    assert set(document["component_ms"]) == {"vision", "connector", "embed", "prefill", "decode", "host"}


@pytest.mark.parametrize("made", ["missing", "text", "truncated", "bomb"])
def test_hostile_images_are_typed_errors(directory: Path, image: Path, tmp_path: Path, made: str) -> None:
    path = tmp_path / "hostile.png"
    if made == "text":
        path.write_text("not an image")
    elif made == "truncated":
        path.write_bytes(image.read_bytes()[:200])
    elif made == "bomb":
        Image.new("1", (20_000, 20_000)).save(path)
    result = CliRunner().invoke(app, ["run", str(directory), "--image", str(path), "--prompt", "Read."])
    assert isinstance(result.exception, InputError), result.output
    assert ("there is no such file" if made == "missing" else "not a readable image") in result.exception.why


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--prompt", "word " * 4000], "tokens"),
        (["--prompt", "Read.", "--max-tokens", "100000"], "do not fit a cache"),
        (["--prompt", "Read.", "--target", "x86/avx512"], "no artifacts for x86/avx512"),
        (["--prompt", "Read.", "--configuration", "none.json"], "no such file"),
    ],
)
def test_what_cannot_be_done_is_said(directory: Path, image: Path, options: list[str], words: str) -> None:
    result = CliRunner().invoke(app, ["run", str(directory), "--image", str(image), *options])
    assert isinstance(result.exception, PocketportError), result.output
    assert words in result.exception.why


def test_a_configuration_of_other_artifacts_is_refused(directory: Path, tmp_path: Path) -> None:
    path = tmp_path / "x86.json"
    tuned(directory, sha256="0" * 64).save(path)
    with pytest.raises(UsageError, match="another artifact"), open_model(directory, configuration=path):
        pass
    other = tuned(directory)
    del other.components["decode"]
    other.save(path)
    with pytest.raises(UsageError, match="nothing about decode"), open_model(directory, configuration=path):
        pass
    path.write_text("{}", encoding="utf-8")
    with pytest.raises(InputError, match="x86-configuration/1"), open_model(directory, configuration=path):
        pass


def test_a_run_for_phones_alone_is_refused(directory: Path, tmp_path: Path) -> None:
    document = json.loads((directory / "run.json").read_text(encoding="utf-8"))
    document["targets"][0]["id"] = "qualcomm/sm8650"
    (tmp_path / "run.json").write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(UsageError, match="no artifacts for this machine; it has qualcomm/sm8650"), open_model(tmp_path):
        pass


def test_artifacts_outside_the_run_are_refused(directory: Path, tmp_path: Path) -> None:
    document = json.loads((directory / "run.json").read_text(encoding="utf-8"))
    document["targets"][0]["components"][0]["artifacts"][0]["path"] = "../outside"
    shutil.copytree(directory / "x86" / "pivot", tmp_path / "x86" / "pivot")
    (tmp_path / "run.json").write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(InputError, match="not in the run's folder"), open_model(tmp_path):
        pass


class Bytes:
    """A tokenizer whose tokens are single bytes."""

    def decode(self, tokens: list[int], *, skip_special_tokens: bool) -> str:
        return bytes(tokens).decode(errors="replace")


def test_half_a_character_waits_for_the_other_half() -> None:
    pieces: list[str] = []
    stream = TextStream(Bytes(), [0], pieces.append)  # type: ignore[arg-type]
    for token in [*"aé".encode(), 0]:
        stream(token)
    assert pieces == ["a", "é"]
