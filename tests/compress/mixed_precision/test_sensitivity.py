"""Values, gradients and errors of a small Llama against transformers and autograd, by the definitions, token by token."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from decoder_models import save_decoder
from torch import Tensor
from torch.nn import functional

from pocketport.compress.blockwise.activations import Activations
from pocketport.compress.bundle import ModelBundle
from pocketport.compress.families.registry import Lengths, family_of, host_of
from pocketport.compress.families.transformers_reference import transformers_model
from pocketport.compress.mixed_precision.next_token import Head, quality, scored
from pocketport.compress.mixed_precision.sensitivity import Inputs, Rounder, Sensitivities
from pocketport.compress.mixed_precision.stream import GRADIENT, Stream
from pocketport.compress.sources.open import open_source
from pocketport.errors import InputError, UsageError
from pocketport.stages.sequences import Sequences

pytest.importorskip("transformers")

LENGTH, COUNT = 16, 6
CPU = torch.device("cpu")
NAMES = [
    f"model.layers.{i}.{n}_proj.weight" for i in (0, 1) for n in ("self_attn.q", "self_attn.v", "self_attn.o", "mlp.down")
]  # fmt: skip
TOKENS = np.random.default_rng(0).integers(3, 150, (COUNT, LENGTH)).astype(np.int32)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> tuple[ModelBundle, Any]:
    source = open_source(save_decoder(tmp_path_factory.mktemp("llama"), "llama"))
    bundle = family_of(source).load(source, "llama", Lengths(prompt=LENGTH, cache=32))
    return bundle, transformers_model(source, "AutoModelForCausalLM")


def streamed(bundle: ModelBundle, activations: Activations) -> tuple[Stream, Head]:
    head = Head(bundle["prefill"].graph, CPU)
    feeds = Sequences(TOKENS, "random").feeds(bundle, host_of(bundle))
    return Stream(lambda _: bundle["prefill"].graph, feeds, [head.hidden], activations, CPU), head


def noisy(name: str, scheme: str, weight: Tensor) -> Tensor:
    """Stands for rounding: noise that depends on the name alone."""
    generator = torch.Generator().manual_seed(sum(map(ord, name)))
    return weight + 0.01 * float(scheme) * torch.randn(weight.shape, generator=generator)


def rounded(name: str, schemes: Sequence[str], weight: Tensor, inputs: Inputs) -> Iterator[Tensor]:
    assert inputs.importance.shape == (weight.shape[1],)
    return (noisy(name, scheme, weight) for scheme in schemes)


def sensitivities_of(
    bundle: ModelBundle, path: Path, schemes: list[str], rounder: Rounder = rounded, seed: int = 0
) -> Sensitivities:
    with Activations(path, 1 << 16) as activations:  # most of it is in the file
        stream, head = streamed(bundle, activations)
        sensitivities = Sensitivities(dict.fromkeys(NAMES, schemes), rounder, stream.count, activations)
        stream.forward()
        generator = torch.Generator().manual_seed(seed)
        for sample in range(stream.count):
            hidden = activations.get(head.hidden, sample, CPU)
            activations.put(GRADIENT + head.hidden, sample, head.gradient(hidden, generator))
        stream.backward(sensitivities.wants, sensitivities.visit, sensitivities.finish)
        assert not any(n.endswith(".weight") for s in range(stream.count) for n in activations.names(s))
    return sensitivities


def inputs_and_gradients(
    model: Any, tokens: Tensor, generator: torch.Generator
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Of every linear layer, from transformers: rows of x and of the gradient by its output."""
    seen: dict[str, list[Tensor]] = {}

    def keep(name: str) -> Any:
        def hook(module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            output.retain_grad()
            seen[name] = [inputs[0].detach(), output]

        return hook

    hooks = [model.get_submodule(n.removesuffix(".weight")).register_forward_hook(keep(n)) for n in NAMES]
    with torch.enable_grad():
        logits = model(inputs_embeds=model.get_input_embeddings()(tokens).requires_grad_()).logits[0]
        chances = logits.detach().softmax(-1)
        signs = torch.randint(0, 2, logits.shape, generator=generator) * 2 - 1.0
        # Its square root times signs has the covariance diag(p) − ppᵀ.
        factor = (torch.diag_embed(chances.sqrt()) - chances[:, :, None] * chances.sqrt()[:, None]) @ signs[:, :, None]
        logits.backward(factor[:, :, 0])
    for hook in hooks:
        hook.remove()
    for name, (x, output) in seen.items():
        assert output.grad is not None
        yield name, x[0].double(), output.grad[0].double()


def test_errors_are_those_of_the_definitions(llama: tuple[ModelBundle, Any], tmp_path: Path) -> None:
    bundle, model = llama
    sensitivities = sensitivities_of(bundle, tmp_path / "activations", ["1", "3", "0.1"])
    found = sensitivities.errors
    rows: dict[str, list[tuple[Tensor, Tensor]]] = {}
    generator = torch.Generator().manual_seed(0)
    for tokens in torch.from_numpy(TOKENS.astype(np.int64)):
        for name, x, gradient in inputs_and_gradients(model, tokens[None], generator):
            rows.setdefault(name, []).append((x, gradient))
    assert found.keys() == set(NAMES)
    for name in NAMES:
        whole = [(g.T @ x) for x, g in rows[name]]  # the gradient of the weight, of each sample
        x, g = (torch.cat(parts) for parts in zip(*rows[name], strict=True))
        depends = g.square().sum(1) > 0  # a first token's query changes nothing: it has one key
        x, g = x[depends], g[depends]
        weight = model.get_parameter(name).detach()
        expected, sizes, effects = {}, [], []
        for scheme in ("1", "3", "0.1"):
            change = (noisy(name, scheme, weight) - weight).double()
            noise, energy = x @ change.T, g.square().sum(1)
            output = noise.square().sum() / (x @ weight.double().T).square().sum()
            trace = (energy * x.square().sum(1)).sum() / weight.numel() * change.square().sum()
            shares = g.square().sum(0) / g.square().sum()
            loss = (energy * (noise.square() @ shares)).sum() / 2
            effects.append([float((gradient * change).sum()) for gradient in whole])
            sizes.append(float(np.square(effects[-1]).sum() / 2 / loss))
            expected[scheme] = {"output": float(output), "trace": float(trace), "loss": float(loss)}
        for scheme, errors in expected.items():
            errors["loss"] *= sum(sizes) / len(sizes)
            assert found[name][scheme] == pytest.approx(errors, rel=2e-3)
        scale = np.abs(effects).max(1, keepdims=True)
        np.testing.assert_allclose(sensitivities.effects[name] / scale, effects / scale, atol=2e-3)


def test_the_loss_model_foretells_the_divergence(llama: tuple[ModelBundle, Any], tmp_path: Path) -> None:
    """Summed over all weights, within a quarter: it is a second-order estimate from 96 tokens and 40 draws of signs."""
    bundle, _ = llama
    drawn = [sensitivities_of(bundle, tmp_path / "activations", ["1"], seed=seed).errors for seed in range(40)]
    with Activations(tmp_path / "again", 1 << 24) as activations:
        stream, head = streamed(bundle, activations)
        stream.forward()
        known = [head.expected(activations.get(head.hidden, s, CPU)) for s in range(COUNT)]
        initializers = bundle["prefill"].graph.graph.initializers
        changed = {}
        for name in NAMES:
            tensor = ir.convenience.get_const_tensor(initializers[name])
            assert tensor is not None
            changed[name] = noisy(name, "1", torch.from_numpy(tensor.numpy().copy()))
        stream.forward(changed)
        measured = quality(head, known, (activations.get(head.hidden, s, CPU) for s in range(COUNT)))
    foretold = sum(e["1"]["loss"] for errors in drawn for e in errors.values()) / (len(drawn) * COUNT * LENGTH)
    assert foretold == pytest.approx(measured.divergence, rel=0.25)


def test_quality_is_that_of_transformers(llama: tuple[ModelBundle, Any], tmp_path: Path) -> None:
    bundle, model = llama
    with torch.inference_mode():
        logits = model(input_ids=torch.from_numpy(TOKENS.astype(np.int64))).logits[:, :-1]
    expected = functional.cross_entropy(
        logits.reshape(-1, logits.shape[-1]), torch.from_numpy(TOKENS[:, 1:].astype(np.int64)).reshape(-1)
    )
    with Activations(tmp_path / "activations", 1 << 24) as activations:
        stream, head = streamed(bundle, activations)
        stream.forward()
        hidden = [activations.get(head.hidden, s, CPU) for s in range(COUNT)]
        noise = torch.randn(hidden[0].shape, generator=torch.Generator().manual_seed(0))
        changed = [h + 0.2 * h.std() * noise for h in hidden]
        rows = scored(stream.counting, TOKENS)
        known = [head.expected(h[r]) for h, r in zip(hidden, rows, strict=True)]
        found = quality(head, known, [h[r] for h, r in zip(hidden, rows, strict=True)], TOKENS)
        worse = quality(head, known, [h[r] for h, r in zip(changed, rows, strict=True)], TOKENS)
        last = scored([torch.arange(LENGTH) >= LENGTH - 3] * COUNT)
        some = quality(
            head, [head.expected(h[r]) for h, r in zip(hidden, last, strict=True)], [h[-3:] for h in changed]
        )
        given = torch.stack([head.logits(h) for h in changed]).log_softmax(-1)
        wanted = torch.stack([head.logits(h) for h in hidden]).log_softmax(-1)
    divergences = (wanted.exp() * (wanted - given)).sum(-1)
    assert found.loss == pytest.approx(float(expected), rel=1e-4) and found.positions == COUNT * (LENGTH - 1)
    assert found.divergence == pytest.approx(0, abs=1e-6)
    assert len(worse.sums) == COUNT and worse.counts == [LENGTH - 1] * COUNT
    assert sum(worse.sums) == pytest.approx(worse.divergence * worse.positions)
    assert (some.positions, some.loss) == (3 * COUNT, None)
    assert worse.divergence == pytest.approx(float(divergences[:, :-1].mean()), rel=1e-3)
    assert some.divergence == pytest.approx(float(divergences[:, -3:].mean()), rel=1e-3)


def test_what_can_not_be_streamed_is_an_error(llama: tuple[ModelBundle, Any], tmp_path: Path) -> None:
    bundle, _ = llama
    with Activations(tmp_path / "a", 1 << 20) as activations, pytest.raises(UsageError, match="no calibration samples"):
        Stream(lambda _: bundle["prefill"].graph, iter(()), ["logits"], activations, CPU)
    with pytest.raises(InputError, match="last row"):
        Head(bundle["embed"].graph, CPU)
