"""`pocketport search --format gguf`: a type for each tensor, at a size, in a file that holds what was measured."""

import shutil
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from pocketport.cli import app
from pocketport.compress.ingest import path_of
from pocketport.compress.mixed_precision.checkpoint import Composed, Dequantized
from pocketport.compress.quantized_weights import QuantizedWeights
from pocketport.compress.recipe import Rule
from pocketport.compress.sources.open import open_source
from pocketport.request import Request
from pocketport.stages.context import Context
from pocketport.stages.search import FormatSearch
from pocketport.stages.searched import Budget
from pocketport.store import Store

transformers = pytest.importorskip("transformers")

SUPER = {"q2_k", "q3_k", "iq4_xs", "q4_k", "q5_k", "q6_k"}
PLAIN = {"iq4_nl", "q4_0", "q5_0", "q8_0"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of which the second matrix of the MLP has 352 columns, which are no blocks of 256."""
    folder = tmp_path_factory.mktemp("llama")
    shutil.copy(path_of("reference") / "tokenizer.json", folder)
    config = transformers.LlamaConfig(
        hidden_size=256, intermediate_size=352, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=512, max_position_embeddings=512,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    np.savez(folder / "tokens.npz", input_ids=np.random.default_rng(0).integers(3, 500, (16, 32)))
    return folder


def searching(model: Path, root: Path, recipe: str = "gptq_refined", schemes: list[str] | None = None) -> FormatSearch:
    request = Request(
        source=str(model), formats=["gguf"], recipe=recipe, data=str(model / "tokens.npz"), calibration_samples=8,
        sequence_length=32, memory_limit=1 << 30,
    )  # fmt: skip
    return FormatSearch(Context(request, Store(root / "cache"), root), schemes)


def test_errors_know_every_type(model: Path, tmp_path: Path) -> None:
    """Each tensor is tried in the types whose blocks divide its columns; by gptq all err less than by nearest values."""
    search = searching(model, tmp_path)
    for weight, errors in search.errors.items():
        assert errors.keys() == (PLAIN if weight.endswith("down_proj.weight") else SUPER | PLAIN), weight
        assert set(search.found.schemes[weight]) == errors.keys()
        for finer, coarser in (
            ("q8_0", "q5_0"),
            ("q5_0", "q4_0"),
            ("q6_k", "q5_k"),
            ("q5_k", "q4_k"),
            ("q3_k", "q2_k"),
        ):
            if coarser in errors:
                assert errors[finer]["loss"] < errors[coarser]["loss"], (weight, finer)
    nearest = searching(model, tmp_path, "default", ["q2_k", "q3_k", "iq4_nl"])
    for weight, errors in nearest.errors.items():
        for kind, error in errors.items():
            assert search.errors[weight][kind]["output"] < error["output"], (weight, kind)


def test_the_file_is_no_larger_and_holds_what_was_measured(model: Path, tmp_path: Path) -> None:
    search = searching(model, tmp_path)
    size = search.found.fixed_bytes + int(4.1 * search.found.elements / 8)
    recipe, out = tmp_path / "mixed.yaml", tmp_path / "out"
    common = [
        "--format", "gguf", "--data", str(model / "tokens.npz"), "--calibration-samples", "8", "--sequence-length", "32",
        "--cache", str(tmp_path / "cache"), "--memory-limit", "1GB",
    ]  # fmt: skip
    runner = CliRunner()
    for arguments in (
        ["search", str(model), *common, "--recipe", "gptq_refined", "--budget-bytes", str(size), "--out", str(recipe)],
        ["port", str(model), *common, "--recipe", str(recipe), "--out", str(out)],
    ):
        done = runner.invoke(app, arguments, catch_exceptions=False)
        assert done.exit_code == 0, done.output
    (path,) = out.rglob("*.gguf")
    tensors = gguf.GGUFReader(path).tensors
    assert 0.97 * size < sum(tensor.n_bytes for tensor in tensors) <= size
    kinds = {tensor.name: tensor.tensor_type.name.lower() for tensor in tensors}
    chosen = {kind for name, kind in kinds.items() if name.endswith(".weight") and name.startswith("blk.")} - {"f32"}
    assert len(chosen) > 1 and chosen <= SUPER | PLAIN
    best = search.search(Budget(bytes=float(size))).best
    stored = open_source(path).tensors
    written = {weight: torch.from_numpy(stored[weight].numpy().copy()) for weight in search.found.schemes}
    assert search.quality_of(written, search.measured).divergence == pytest.approx(best.figures["divergence"], rel=1e-6)


def test_composed_weights_are_those_of_their_models(model: Path, tmp_path: Path) -> None:
    """Rounded each for itself they are what the allocation is quantized to."""
    search = searching(model, tmp_path, "default", ["q3_k", "q4_0"])
    rules = [Rule(scheme="q4_0"), Rule(name="model.layers.1.*", scheme="q3_k", fallback=["q4_0"])]
    made = {kind: QuantizedWeights(search._throughout(kind).path) for kind in ("q3_k", "q4_0")}
    whole = QuantizedWeights(search._quantized(rules).path)
    origins = {name: made[whole.form(name)["type"]] for name in whole if name in search.found.schemes}
    composed, expected = Dequantized(Composed(origins)), Dequantized(whole)
    assert {whole.form(name)["type"] for name in origins} == {"q3_k", "q4_0"}
    for name in origins:
        torch.testing.assert_close(composed[name], expected[name], rtol=0, atol=0)
