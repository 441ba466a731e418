"""The shipped checkpoint, and the parts of its training that can go wrong quietly."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pocketport.calibration.sources.rendered_text import PROMPT, RenderedText, Sample
from pocketport.compress.families.minicpmv.config import MiniCPMVConfig
from pocketport.compress.families.minicpmv.prompt import load_tokenizer
from pocketport.compress.families.minicpmv.slicing import max_patches
from pocketport.compress.reference import reference_dir
from pocketport.compress.reference.evaluate import edit_distance, evaluate, load_model, read_texts
from pocketport.compress.reference.train import Trainer, losses, rate_at, weights_at
from pocketport.compress.reference.train_data import build_batch, label_views, stretch, to_torch


@pytest.fixture(scope="module")
def config() -> MiniCPMVConfig:
    return MiniCPMVConfig.load(reference_dir())


def test_checkpoint_is_small_and_whole() -> None:
    file = reference_dir() / "model.safetensors"
    assert file.stat().st_size < 25_000_000
    model = load_model(reference_dir())
    assert 2e6 < sum(p.numel() for p in model.parameters()) < 10e6
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_declared_patches_are_the_maximum(config: MiniCPMVConfig) -> None:
    declared = json.loads((reference_dir() / "preprocessor_config.json").read_text())
    assert declared["max_patches"] == max_patches(config.slice_config)


def test_it_reads() -> None:
    score, _ = evaluate(load_model(reference_dir()), load_tokenizer(reference_dir()), 24, batch=24)
    assert score.count == 24
    assert score.exact_match >= 0.7, score
    assert score.cer <= 0.1, score


def test_batched_answers_equal_single_ones() -> None:
    model, tokenizer = load_model(reference_dir()), load_tokenizer(reference_dir())
    samples = list(RenderedText(2, "held_out").take(4))
    assert read_texts(model, tokenizer, samples) == [read_texts(model, tokenizer, [s])[0] for s in samples]


@pytest.mark.parametrize(("a", "b", "edits"), [("", "", 0), ("abc", "abd", 1), ("", "xy", 2), ("kitten", "sitting", 3)])
def test_edit_distance(a: str, b: str, edits: int) -> None:
    assert edit_distance(a, b) == edit_distance(b, a) == edits


def test_stretch_lays_lines_end_to_end() -> None:
    points = np.asarray([[0, 0], [10, 0], [0, 50], [10, 50]], dtype=np.float32)
    assert stretch(points, np.asarray([0, 0, 1, 1])).tolist() == [0.25, 0.5, 0.75, 1.0]
    assert stretch(points[:1], np.asarray([0])).tolist() == [1.0]


def test_labels_follow_the_characters(config: MiniCPMVConfig) -> None:
    centres = np.asarray([[7, 20], [35, 20], [35, 20], [63, 48]], dtype=np.float32)
    sample = Sample(Image.new("RGB", (112, 112)), PROMPT, "AB\nC", centres, "none")
    labels = label_views(sample, config)
    assert labels.ctc == [[65, 66, 67]]
    cells = labels.dense[0][:, 0].reshape(8, 8)
    assert (cells[1, 0], cells[1, 2], cells[3, 4]) == (65, 66, 67)
    assert np.count_nonzero(cells) == 3
    shown = [tuple(slot) for slot in labels.slots[0].tolist()]
    assert shown == sorted(shown)
    assert set(shown) == {(65, 8), (66, 10), (67, 28)}


def test_every_parameter_learns_and_a_resumed_run_is_the_same(tmp_path: Path, config: MiniCPMVConfig) -> None:
    tokenizer = load_tokenizer(reference_dir())
    samples = list(RenderedText(1).take(4))
    batch = to_torch(build_batch(samples, config, tokenizer))
    first = Trainer(tmp_path, seed=0, batch=4, rate=1e-3)
    parts = losses(first.model, first.heads, batch, language=True)
    torch.autograd.backward(torch.stack(list(parts.values())).sum())
    assert not [n for n, p in first.model.named_parameters() if p.grad is None or not p.grad.any()]
    first.update(batch, 0.5)
    first.elapsed = 12.0
    first.save()
    torch.manual_seed(5)
    expected = first.update(batch, 0.5)
    second = Trainer(tmp_path, seed=3, batch=4, rate=1e-3)
    second.resume()
    torch.manual_seed(5)
    assert (second.step, second.elapsed) == (1, 12.0)
    assert second.update(batch, 0.5) == expected


def test_schedules_end_at_zero() -> None:
    assert rate_at(1.0) == 0
    assert rate_at(0.2) == 1
    assert {name for name, weight in weights_at(1.0).items() if weight} == {"lm"}
