"""Samples of several lengths on one way, and parts that need not be computed again."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from decoder_models import save_decoder
from torch import Tensor

from pocketport.compress.blockwise.activations import Activations
from pocketport.compress.blockwise.samples import STREAM
from pocketport.compress.executors.ort_executor import Arrays, OrtExecutor
from pocketport.compress.families.registry import Lengths, family_of, host_of
from pocketport.compress.mixed_precision import sensitivity
from pocketport.compress.mixed_precision import stream as module
from pocketport.compress.mixed_precision.route import Part
from pocketport.compress.mixed_precision.sensitivity import Inputs, Sensitivities
from pocketport.compress.mixed_precision.stream import GRADIENT, Stream
from pocketport.compress.sources.open import open_source
from pocketport.stages.sequences import Sequences

CPU = torch.device("cpu")
LENGTHS = (6, 9, 6, 6, 4, 9)
WANTED = "logits"
LAST = "model.layers.1.mlp.down_proj.weight"
FIRST = "model.layers.0.self_attn.q_proj.weight"


class Model:
    """A decoder's graph at each length, and samples."""

    def __init__(self, path: Path) -> None:
        source = open_source(save_decoder(path, "llama"))
        self.bundles = {
            n: family_of(source).load(source, "llama", Lengths(prompt=n, cache=32)) for n in sorted(set(LENGTHS))
        }
        rng = np.random.default_rng(0)
        self.feeds: list[Arrays] = []
        for length in LENGTHS:
            tokens = rng.integers(3, 150, (1, length)).astype(np.int32)
            bundle = self.bundles[length]
            self.feeds += Sequences(tokens, "random").feeds(bundle, host_of(bundle))

    def graph(self, feeds: Arrays) -> ir.Model:
        return self.bundles[len(feeds[STREAM])]["prefill"].graph

    def weight(self, name: str) -> Tensor:
        tensor = self.bundles[LENGTHS[0]]["prefill"].graph.graph.initializers[name].const_value
        assert tensor is not None
        return torch.from_numpy(np.array(tensor.numpy(), np.float32))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Model(tmp_path_factory.mktemp("llama"))


def results(stream: Stream) -> list[Tensor]:
    return [stream.activations.get(WANTED, s, CPU).clone() for s in range(stream.count)]


def test_samples_of_every_length_give_what_onnxruntime_gives(model: Model, tmp_path: Path) -> None:
    with Activations(tmp_path / "spill", 1 << 24) as activations:
        stream = Stream(model.graph, iter(model.feeds), [WANTED], activations, CPU)
        stream.forward()
        assert stream.count == len(LENGTHS)
        for feeds, found in zip(model.feeds, results(stream), strict=True):
            expected = OrtExecutor(model.graph(feeds)).run(feeds)[WANTED]
            np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)


def test_gradients_are_those_of_each_length_alone(model: Model, tmp_path: Path) -> None:
    def gradient(path: Path, samples: list[int]) -> Tensor:
        found: list[Tensor] = []
        finished: list[Part] = []

        def visit(sample: int, node: ir.Node, x: Tensor, gradient: Tensor) -> None:
            found.append(gradient.T @ x)

        with Activations(path, 1 << 24) as activations:
            stream = Stream(model.graph, iter([model.feeds[s] for s in samples]), [WANTED], activations, CPU)
            stream.forward()
            for sample in range(stream.count):
                activations.put(GRADIENT + WANTED, sample, torch.ones_like(activations.get(WANTED, sample, CPU)))
            stream.backward(lambda n: any(v is not None and v.name == LAST for v in n.inputs), visit, finished.append)
        assert len(finished) == 2 and len(found) == len(samples)
        return torch.stack(found).sum(0)

    together = gradient(tmp_path / "all", list(range(len(LENGTHS))))
    alone = [gradient(tmp_path / str(s), [s]) for s in range(len(LENGTHS))]
    torch.testing.assert_close(together, torch.stack(alone).sum(0))


@pytest.mark.parametrize("elements", [1, 1 << 22])
def test_effects_are_in_the_order_of_the_samples(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, elements: int
) -> None:
    """Samples of one length go together, and gradients are multiplied one by one or all at once."""
    monkeypatch.setattr(sensitivity, "TOGETHER", elements)

    def rounded(name: str, schemes: Sequence[str], weight: Tensor, inputs: Inputs) -> Iterator[Tensor]:
        return (
            weight + 0.01 * torch.sin(float(scheme) * torch.arange(weight.numel())).view_as(weight)
            for scheme in schemes
        )

    def effects(path: Path, samples: list[int]) -> Tensor:
        with Activations(path, 1 << 24) as activations:
            stream = Stream(model.graph, iter([model.feeds[s] for s in samples]), [WANTED], activations, CPU)
            found = Sensitivities({LAST: ["1", "2"]}, rounded, stream.count, activations)
            stream.forward()
            for sample in range(stream.count):
                activations.put(GRADIENT + WANTED, sample, torch.ones_like(activations.get(WANTED, sample, CPU)))
            stream.backward(found.wants, found.visit, found.finish)
        return found.effects[LAST]

    together = effects(tmp_path / "all", list(range(len(LENGTHS))))
    alone = [effects(tmp_path / str(s), [s]) for s in range(len(LENGTHS))]
    assert together.shape == (2, len(LENGTHS)) and len(together[0].unique()) == len(LENGTHS)
    torch.testing.assert_close(together, torch.cat(alone, 1))


def test_only_what_lies_behind_another_weight_is_computed_again(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[int] = []
    run_nodes = module.run_nodes

    def counted(nodes: Any, *arguments: Any) -> None:
        ran.append(len(list(nodes)))
        run_nodes(nodes, *arguments)

    changes: list[dict[str, Tensor]] = [
        {}, {LAST: 0.9 * model.weight(LAST)}, {LAST: 0.9 * model.weight(LAST)}, {LAST: 0.8 * model.weight(LAST)}, {},
        {FIRST: 0.5 * model.weight(FIRST)}, {FIRST: 0.5 * model.weight(FIRST), LAST: 0.9 * model.weight(LAST)}, {},
    ]  # fmt: skip
    counts = []
    with Activations(tmp_path / "spill", 1 << 24) as activations, Activations(tmp_path / "new", 1 << 24) as others:
        stream = Stream(model.graph, iter(model.feeds), [WANTED], activations, CPU)
        for replaced in changes:
            with monkeypatch.context() as patched:
                patched.setattr(module, "run_nodes", counted)
                ran.clear()
                stream.forward(replaced)
                counts.append(len(ran) // stream.count)
            anew = Stream(model.graph, iter(model.feeds), [WANTED], others, CPU)
            anew.forward(replaced)
            for kept, computed in zip(results(stream), results(anew), strict=True):
                assert torch.equal(kept, computed)
        # One sample alone leaves nothing to rely on.
        stream.forward({LAST: 0.5 * model.weight(LAST)}, samples=[0])
        stream.forward({})
        for kept, computed in zip(results(stream), results(anew), strict=True):
            assert torch.equal(kept, computed)
    assert counts == [2, 1, 0, 1, 1, 2, 1, 2]
