"""Distilled scales: their gradient against transformers' own, and what a pass over the data brings."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from decoder_models import save_decoder
from ggml_library import dequantized_by_gguf
from torch.func import functional_call
from torch.nn import functional

from pocketport.compress.blockwise.activations import Activations
from pocketport.compress.blockwise.engine import quantize_weights
from pocketport.compress.distillation.moving import moving_weight
from pocketport.compress.distillation.scales import MovingScales, distill_scales, divergence_step
from pocketport.compress.executors.ort_executor import Arrays
from pocketport.compress.families.registry import Lengths, family_of, host_of
from pocketport.compress.families.transformers_reference import transformers_model
from pocketport.compress.formats.gptq import GptqFormat
from pocketport.compress.ggml.blocks import FORMS
from pocketport.compress.ggml.quantize import quantize
from pocketport.compress.mixed_precision.next_token import Head
from pocketport.compress.mixed_precision.stream import Stream
from pocketport.compress.planning.weights import plan_weights
from pocketport.compress.quantized_weights import (
    PackedWeight,
    QuantizedWeight,
    QuantizedWeights,
    write_index,
    write_part,
)
from pocketport.compress.recipe import Recipe, Rule
from pocketport.compress.sources.open import open_source

TOKENS, COUNT, PADDING = 24, 12, 5
CPU = torch.device("cpu")


class Model:
    """A checkpoint, its weights in 3 bits, and sequences; the first rows of the first one are padding."""

    def __init__(self, folder: Path) -> None:
        torch.manual_seed(0)
        self.source = open_source(save_decoder(folder / "model", "llama3-rope"))
        self.bundle = family_of(self.source).load(self.source, "small", Lengths(prompt=TOKENS))
        self.graph = self.bundle["prefill"].graph
        rule = Rule(algorithm="rtn", scheme="w3b32fp16")
        planned = plan_weights(self.source, self.bundle, Recipe(name="test", rules=[rule]), GptqFormat(), "")
        plans = [p for p in planned if p.quantized]
        self.forms = {p.tensor: True for p in plans}
        directory = folder / "weights"
        directory.mkdir()
        quantize_weights(self.source, self.bundle, plans, directory, memory_limit=1 << 30)
        self.weights = QuantizedWeights(directory)
        table = np.asarray(self.source.tensors["model.embed_tokens.weight"].numpy())
        self.tokens = np.random.default_rng(0).integers(0, len(table), (2 * COUNT, TOKENS))
        self.embeds = [np.asarray(table[row], np.float32) for row in self.tokens]
        self.reference = transformers_model(self.source, "AutoModelForCausalLM")

    def feeds(self) -> Iterator[Arrays]:
        host = host_of(self.bundle)
        return (host.prefill_feeds(embeds, TOKENS) for embeds in self.embeds[:COUNT])

    def divergence(self, weights: dict[str, torch.Tensor], rows: np.ndarray) -> torch.Tensor:
        """KL from the float model's predictions, nats a token, by transformers."""
        ids = torch.from_numpy(rows)
        with torch.no_grad():
            wanted = self.reference(input_ids=ids).logits.log_softmax(-1)
        given = functional_call(self.reference, weights, kwargs={"input_ids": ids}).logits.log_softmax(-1)
        return functional.kl_div(given, wanted, reduction="sum", log_target=True) / rows.size

    def floats(self, weights: QuantizedWeights) -> dict[str, torch.Tensor]:
        return {name: torch.from_numpy(integers_of(weights, name).dequantized()) for name in weights}


def integers_of(weights: QuantizedWeights, name: str) -> QuantizedWeight:
    weight = weights[name]
    assert isinstance(weight, QuantizedWeight)
    return weight


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Model(tmp_path_factory.mktemp("distillation"))


def distilled(model: Model, directory: Path, passes: int = 1) -> tuple[QuantizedWeights, list[float]]:
    directory.mkdir()
    found = distill_scales(
        model.graph, model.weights, model.forms, model.feeds(), directory, passes=passes, budget=1 << 24, device=CPU
    )
    return QuantizedWeights(directory), found


def test_the_gradient_is_the_one_of_transformers(model: Model, tmp_path: Path) -> None:
    moving, head = MovingScales(model.weights, model.forms, CPU), Head(model.graph, CPU)
    with Activations(tmp_path / "spill", 1 << 24) as activations:
        stream = Stream(lambda _: model.graph, model.feeds(), [head.hidden], activations, CPU)
        own = activations.names(1)
        divergence = divergence_step(stream, head, moving, 1)
        assert activations.names(1) == own
    changes = {n: torch.zeros_like(c, requires_grad=True) for n, c in moving.changes.items()}
    weights = {}
    for name, change in changes.items():
        stored = integers_of(model.weights, name)
        plain = torch.from_numpy(stored.dequantized()).reshape(*stored.scale.shape, -1)
        weights[name] = (plain * (1 + change[..., None])).reshape(stored.shape)
    expected = model.divergence(weights, model.tokens[1:2])
    expected.backward()
    assert divergence == pytest.approx(expected.item(), rel=1e-4)
    for name, change in changes.items():
        assert change.grad is not None
        found = moving.changes[name].grad
        assert found is not None
        assert float((found - change.grad).norm()) <= 1e-3 * float(change.grad.norm()), name


@pytest.mark.parametrize("kind", sorted(FORMS))
def test_the_floats_of_blocks_move_as_ggml_reads_them(kind: str, tmp_path: Path) -> None:
    """What they stand for is linear in the changes, with the gradient that says so; what is stored reads alike."""
    generator, shape = torch.Generator().manual_seed(0), (3, 512)
    matrix = torch.randn(shape, generator=generator).numpy()
    entries = write_part(tmp_path / "part.safetensors", {"w": PackedWeight(kind, shape, quantize(kind, matrix, None))})
    write_index(tmp_path, entries)
    moving = moving_weight(QuantizedWeights(tmp_path), "w", half=True)
    change = 0.1 * torch.randn(moving.shape, generator=generator)
    by_weight, still = torch.randn(shape, generator=generator), torch.zeros(moving.shape)
    read = dequantized_by_gguf(kind, quantize(kind, matrix, None))
    torch.testing.assert_close(moving.floats(still), torch.from_numpy(read))
    moved = moving.floats(change)
    slope = float((moving.slopes(by_weight, still) * change).sum())
    assert slope == pytest.approx(float((by_weight * (moved - moving.floats(still))).sum()), rel=1e-3)
    stored = moving.stored(change)
    assert isinstance(stored, PackedWeight)
    torch.testing.assert_close(torch.from_numpy(dequantized_by_gguf(kind, stored.data)), moved, rtol=2e-3, atol=5e-3)


def test_rows_that_do_not_count_have_no_gradient(model: Model) -> None:
    head = Head(model.graph, CPU)
    hidden, expected = torch.randn(2, TOKENS, 64).unbind()
    counting = torch.arange(TOKENS) >= PADDING
    divergence, gradient = head.divergence(hidden, expected, counting)
    assert not gradient[:PADDING].any() and bool(gradient[PADDING:].any())
    alone, its = head.divergence(hidden[PADDING:], expected[PADDING:])
    assert divergence == pytest.approx(alone, rel=1e-5)
    torch.testing.assert_close(gradient[PADDING:], its)


def test_passes_bring_other_sequences_nearer_and_moves_scales_only(model: Model, tmp_path: Path) -> None:
    weights, found = distilled(model, tmp_path / "once", passes=4)
    assert len(found) == 4 * COUNT
    unseen = model.tokens[COUNT:]
    before = float(model.divergence(model.floats(model.weights), unseen))
    after = float(model.divergence(model.floats(weights), unseen))
    assert after < 0.97 * before
    for name in model.weights:
        old, new = integers_of(model.weights, name), integers_of(weights, name)
        np.testing.assert_array_equal(old.integers, new.integers)
        np.testing.assert_array_equal(new.scale, new.scale.astype(np.float16).astype(np.float32))
        assert (old.scale != new.scale).any()


def test_one_thread_and_two_give_the_same_bytes(model: Model, tmp_path: Path) -> None:
    before = torch.get_num_threads()
    written = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            distilled(model, tmp_path / str(threads))
            written.append({p.name: p.read_bytes() for p in sorted((tmp_path / str(threads)).iterdir())})
    finally:
        torch.set_num_threads(before)
    assert written[0] == written[1]
