"""Writing synthetic checkpoints: the same bytes, bounded memory, models that load and compute."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file as load_numpy
from safetensors.torch import load_file
from typer.testing import CliRunner

from pocketport.cli import app
from pocketport.compress.executors.ort_executor import OrtExecutor
from pocketport.compress.families.registry import Lengths, host_of
from pocketport.compress.ingest import ingest
from pocketport.compress.parity import check_parity
from pocketport.compress.synthesis.preset import load_preset, preset_names
from pocketport.compress.synthesis.weights import random_runs
from pocketport.compress.synthesis.write import synthesize
from pocketport.errors import UsageError
from pocketport.files import sha256_files

WIDTH = 256  # about, of the scaled models
QUICK = ("llama-3-8b", "qwen2-7b", "minicpm4-0.5b", "minilm-l6-v2")


def digest(folder: Path) -> str:
    return sha256_files([p for p in folder.iterdir() if p.is_file()])


def small(name: str, folder: Path, layers: int) -> Path:
    config = load_preset(name).config
    width = (config.get("text_config") or config).get("hidden_size", WIDTH)
    synthesize(name, folder, scale=min(1.0, WIDTH / width), layers=layers)
    return folder


def test_the_same_arguments_give_the_same_bytes(tmp_path: Path) -> None:
    for folder, seed in (("a", 0), ("b", 0), ("c", 1)):
        synthesize("minicpm-v-2.6", tmp_path / folder, seed=seed, scale=0.05, layers=1)
    assert digest(tmp_path / "a") == digest(tmp_path / "b") != digest(tmp_path / "c")


def test_a_layer_has_the_same_weights_in_a_deeper_model(tmp_path: Path) -> None:
    for layers in (2, 3):
        synthesize("smollm2-135m", tmp_path / str(layers), scale=0.3, layers=layers)
    shallow, deep = (load_file(tmp_path / str(n) / "model.safetensors") for n in (2, 3))
    name = "model.layers.1.mlp.up_proj.weight"
    assert shallow[name].equal(deep[name])


def test_runs_are_independent_and_plausible() -> None:
    runs = list(random_runs("model.layers.0.mlp.down_proj.weight", (20_000, 512), seed=3, layers=8))
    assert len(runs) > 2
    assert np.array_equal(runs[1](), runs[1]()), "each is computed on its own"
    last, first = runs[-1](), runs[0]()
    assert last.size + sum(run().size for run in runs[:-1]) == 20_000 * 512
    assert not np.array_equal(first[:512], runs[1]()[:512])
    spread = float(np.asarray(first, np.float32).std())
    assert spread == pytest.approx(1 / np.sqrt(512 * 2 * 8), rel=0.2), "fan-in, and smaller at the end of a branch"
    (norm,) = (run() for run in random_runs("model.norm.weight", (4096,), seed=3, layers=8))
    assert float(np.asarray(norm, np.float32).mean()) == pytest.approx(1, abs=0.02)


PEAK = """
import resource, sys
from pathlib import Path
from pocketport.compress.safetensors_writer import TensorEntry, write_checkpoint
from pocketport.compress.synthesis.weights import random_runs
from pocketport.compress.synthesis.write import _ahead
from concurrent.futures import ThreadPoolExecutor
def runs(entry):
    with ThreadPoolExecutor(2) as pool:
        yield from _ahead(pool, random_runs(entry.name, entry.shape, seed=0, layers=1))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
write_checkpoint(Path(sys.argv[1]), [TensorEntry("model.embed_tokens.weight", "BF16", (30_000, 2048))], runs)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_writing_a_large_tensor_takes_little_memory(tmp_path: Path) -> None:
    grown = subprocess.run([sys.executable, "-c", PEAK, str(tmp_path)], capture_output=True, text=True, check=True)
    assert (tmp_path / "model.safetensors").stat().st_size > 120e6
    assert int(grown.stdout) < 110_000, (
        "kB beyond what was there: less than the tensor in bfloat16, half of it in float32"
    )


@pytest.mark.parametrize("name", QUICK)
def test_a_small_one_passes_its_familys_gate(tmp_path: Path, name: str) -> None:
    folder = small(name, tmp_path / name, 2)
    report = check_parity(ingest(folder), folder)
    assert report.figures


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in preset_names() if n not in QUICK])
def test_every_other_one_does_too(tmp_path: Path, name: str) -> None:
    folder = small(name, tmp_path / name, 8)
    assert check_parity(ingest(folder), folder).figures


def test_activations_stay_their_size_through_many_layers(tmp_path: Path) -> None:
    synthesize("smollm2-135m", tmp_path / "deep", scale=0.5)
    bundle = ingest(tmp_path / "deep", lengths=Lengths(prompt=16, cache=32))
    host = host_of(bundle)
    assert host.config.num_hidden_layers == 15
    ids = np.random.default_rng(0).integers(0, host.config.vocab_size, 16).tolist()
    embeds = OrtExecutor(bundle["embed"].graph).run({"input_ids": host.prompt_ids(ids)})["embeds"]
    results = OrtExecutor(bundle["prefill"].graph).run(host.prefill_feeds(np.asarray(embeds, np.float32), 16))
    sizes = [float(np.asarray(results[f"present_value_{i}"]).std()) for i in range(15)]
    assert all(0.3 < size < 3 for size in sizes)
    assert 0.1 < float(np.asarray(results["logits"]).std()) < 10


def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("x")
    with pytest.raises(UsageError, match="something in it"):
        synthesize("smollm2-135m", tmp_path, scale=0.1)
    assert [p.name for p in tmp_path.iterdir()] == ["precious"]


def test_the_command(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    options = ["--out", str(folder), "--scale", "0.2", "--layers", "1", "--seed", "5", "--json"]
    result = CliRunner().invoke(app, ["synth", "smollm2-135m", *options])
    document = json.loads(result.stdout)
    assert document["schema"] == "pocketport.synth/1"
    assert document["bytes"] == sum(p.stat().st_size for p in folder.iterdir())
    assert sorted(document["files"]) == ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json"]
    assert len(load_numpy(folder / "model.safetensors")) == 11
