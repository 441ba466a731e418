"""The gate of every version, on small random checkpoints in the published layout."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from minicpmv_series import SERIES
from safetensors.torch import load_file, save_file

from pocketport.calibration.metrics import sqnr_db
from pocketport.compress.families.minicpmv import parity
from pocketport.compress.families.minicpmv.config import MiniCPMVConfig
from pocketport.compress.families.minicpmv.versions import decoder_of, version_of
from pocketport.compress.ingest import ingest
from pocketport.compress.parity import LEAST_SQNR_DB as LEAST_SQNR_DB_OF_THE_GATE
from pocketport.compress.parity import ParityReport, check_parity
from pocketport.compress.sources.open import open_source
from pocketport.errors import InputError, VerificationError

LEAST_SQNR_DB = 90.0


def gate(folder: Path) -> ParityReport:
    return check_parity(ingest(folder), folder)


@pytest.mark.parametrize("version", SERIES)
def test_every_version_is_what_the_original_computes(series: dict[str, Path], version: str) -> None:
    report = gate(series[version])
    figures = {(f.component, f.tensor): f for f in report.figures}
    assert min(f.sqnr_db for f in figures.values()) > LEAST_SQNR_DB
    assert figures["decode", "token_ids"].max_abs == 0
    assert {component for component, _ in figures} == {"vision", "connector", "prefill", "decode"}
    sliced = figures["vision", "vision_features"].comparisons > parity.SAMPLE_COUNT
    assert sliced == (version != "1.0"), "version 1.0 resizes every image to one square"


@pytest.mark.parametrize("version", ["2.0", "2.6"])
def test_a_large_checkpoint_is_compared_in_part(
    series: dict[str, Path], version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut: list[Any] = []
    original: Callable[..., Any] = parity.part_of
    monkeypatch.setattr(parity, "SMALL", 1)
    monkeypatch.setattr(parity, "WORDS", 320)
    monkeypatch.setattr(parity, "part_of", lambda *given: cut.append(original(*given)) or cut[0])
    report = gate(series[version])
    config = MiniCPMVConfig.of(cut[0])
    assert config.vocab_size == 320 and config.num_hidden_layers == 1
    assert min(f.sqnr_db for f in report.figures) > LEAST_SQNR_DB
    assert {f.component for f in report.figures} == {"vision", "connector", "prefill", "decode"}


@pytest.mark.parametrize(
    ("version", "tensor", "blamed"),
    [
        ("1.0", "vpm.pos_embed", "vision"),
        ("1.0", "resampler.pos_embed", "connector"),
        ("2.0", "vpm.blocks.0.attn.qkv.bias", "vision"),
        ("2.6", "llm.model.layers.1.self_attn.k_proj.bias", "prefill"),
        ("4.5", "llm.model.layers.0.self_attn.q_norm.weight", "prefill"),
        ("4.5", "resampler.ln_post.bias", "connector"),
    ],
)
def test_the_gate_sees_a_wrong_tensor(
    series: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, tensor: str, blamed: str
) -> None:
    monkeypatch.setattr(parity, "SAMPLE_COUNT", 1)
    folder = Path(shutil.copytree(series[version], tmp_path / "model"))
    bundle = ingest(series[version])
    weights = load_file(folder / "model.safetensors")
    weights[tensor] = weights[tensor].flip(-1)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    worst = {"vision": np.inf, "connector": np.inf, "prefill": np.inf}
    for component, _, expected, found in parity.compare(bundle, open_source(folder)):
        if component in worst:
            worst[component] = min(worst[component], sqnr_db(expected, found))
    assert worst[blamed] < LEAST_SQNR_DB_OF_THE_GATE
    before = list(worst)[: list(worst).index(blamed)]
    assert all(worst[component] > LEAST_SQNR_DB for component in before), "what comes before is not to blame"


def test_a_model_with_a_wrong_tensor_is_refused(series: dict[str, Path], tmp_path: Path) -> None:
    folder, bundle = Path(shutil.copytree(series["2.5"], tmp_path / "model")), ingest(series["2.5"])
    weights = load_file(folder / "model.safetensors")
    weights["resampler.proj"] *= 1.02
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(VerificationError, match="differs from the original"):
        check_parity(bundle, folder)


def test_a_tensor_that_the_original_needs_is_missed_by_name(series: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(series["2.0"], tmp_path / "model"))
    weights = load_file(folder / "model.safetensors")
    del weights["vpm.pos_embed"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=r"vpm\.pos_embed"):
        ingest(folder)


@pytest.mark.parametrize(
    ("version", "decoder", "changes"),
    [
        ("1.0", "minicpm", {}),
        ("2.0", "minicpm", {}),
        ("2.5", "llama", {"version": 2.5}),
        ("2.6", "qwen2", {"version": "2.6"}),
        ("4.0", "llama", {"version": 4}),
        ("4.5", "qwen3", {}),
    ],
)
def test_versions_are_told_as_published(
    series: dict[str, Path], version: str, decoder: str, changes: dict[str, Any]
) -> None:
    config = MiniCPMVConfig.model_validate({**json.loads((series[version] / "config.json").read_text()), **changes})
    assert version_of(config).name == version and version_of(config).decoder == decoder
    scales = decoder_of(config)
    scaled = (scales.embedding_scale, scales.residual_scale, scales.logits_scale)
    assert (scaled == (1, 1, 1)) == (decoder != "minicpm")
