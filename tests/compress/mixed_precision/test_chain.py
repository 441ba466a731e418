"""A model that answers about images, component after component: values as its host chains them, gradients all the way back."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from minicpmv46_models import save_minicpmv46
from PIL import Image
from qwen_vl_models import save_qwen_vl
from torch import Tensor

from pocketport.calibration.sources.rendered_text import RenderedText
from pocketport.compress.blockwise.activations import Activations
from pocketport.compress.bundle import ModelBundle
from pocketport.compress.executors.ort_executor import Arrays, Executor
from pocketport.compress.families.chat import ImagePrompt
from pocketport.compress.families.registry import Lengths, family_of, host_of
from pocketport.compress.graph import constant
from pocketport.compress.ingest import ingest
from pocketport.compress.mixed_precision.chain import Chain
from pocketport.compress.mixed_precision.checkpoint import with_weights
from pocketport.compress.mixed_precision.linked_calls import PREFILL, linked_calls
from pocketport.compress.mixed_precision.next_token import Head
from pocketport.compress.mixed_precision.stream import GRADIENT, Stream
from pocketport.compress.sources.open import open_source
from pocketport.compress.structure import weight_operand
from pocketport.errors import UsageError
from pocketport.stages.image_sequences import Answers, ImageSequences

CPU = torch.device("cpu")
COUNT = 4
FIRST = "vpm.encoder.layers.0.mlp.fc1.weight"
BETWEEN = "resampler.kv_proj.weight"


def _answers(bundle: ModelBundle) -> Answers:
    samples = [(s.image, s.prompt, s.answer) for s in RenderedText(seed=5, fonts="train").take(COUNT)]
    return Answers(ImageSequences(lambda: iter(samples), COUNT, int(bundle.config["prompt"]), 0.0, "test", "test"))


@pytest.fixture(scope="module")
def bundle() -> ModelBundle:
    return ingest("reference")


def _chain(bundle: ModelBundle, folder: Path) -> tuple[Chain, Head]:
    head = Head(bundle[PREFILL].graph, CPU)
    prompts = linked_calls(bundle, partial(_answers(bundle).prompts, bundle, host_of(bundle)))
    return Chain(bundle, prompts, head.hidden, lambda name: Activations(folder / name, 1 << 28), CPU), head


def _hidden(bundle: ModelBundle, folder: Path) -> Tensor:
    """As the host chains the components, one sample after the other."""
    head = Head(bundle[PREFILL].graph, CPU)
    feeds = _answers(bundle).feeds(bundle, host_of(bundle))
    with Activations(folder / "plain", 1 << 28) as activations:
        stream = Stream(lambda _: bundle[PREFILL].graph, feeds, [head.hidden], activations, CPU)
        stream.forward()
        return torch.stack([activations.get(head.hidden, i, CPU) for i in range(COUNT)])


def test_the_chain_computes_what_its_host_does(bundle: ModelBundle, tmp_path: Path) -> None:
    chain, head = _chain(bundle, tmp_path)
    assert list(chain.streams) == ["vision", "connector", PREFILL]
    assert chain.owners["vision"] == chain.owners["connector"]
    assert len(chain.owners["vision"]) > COUNT == chain.count  # some images are cut into views
    chain.forward()
    prefill = chain.streams[PREFILL]
    found = torch.stack([prefill.activations.get(head.hidden, i, CPU) for i in range(COUNT)])
    torch.testing.assert_close(found, _hidden(bundle, tmp_path))


@pytest.mark.parametrize("name", [FIRST, BETWEEN])
def test_gradients_go_all_the_way_back(name: str, bundle: ModelBundle, tmp_path: Path) -> None:
    """Central differences of the plain chain say what a change of a weight does to a weighted sum of the hidden states."""
    chain, head = _chain(bundle, tmp_path)
    chain.forward()
    prefill = chain.streams[PREFILL]
    generator = torch.Generator().manual_seed(0)
    given = []
    for sample in range(COUNT):
        gradient = torch.randn(prefill.activations.get(head.hidden, sample, CPU).shape, generator=generator)
        counting = prefill.counting[sample]
        assert counting is not None
        given.append(gradient * counting[:, None])
        prefill.activations.put(GRADIENT + head.hidden, sample, given[-1])
    found: dict[int, Tensor] = {}

    def visit(sample: int, node: ir.Node, x: Tensor, gradient: Tensor) -> None:
        own = gradient.reshape(-1, gradient.shape[-1]).T @ x.reshape(-1, x.shape[-1])
        found[sample] = found.get(sample, torch.zeros(())) + own

    def wanted(component: str, node: ir.Node) -> bool:
        operand = weight_operand(node)
        return operand is not None and operand.value.name == name

    chain.backward(wanted, lambda component: visit, lambda component: lambda part: None)
    assert sorted(found) == list(range(COUNT))
    component = "vision" if name == FIRST else "connector"
    weight = torch.from_numpy(np.array(constant(bundle[component].graph.graph.initializers[name])))
    change = torch.randn(weight.shape, generator=generator) * weight.std() * 1e-3
    above, below = (
        _hidden(with_weights(bundle, {name: weight + sign * change}), tmp_path).double() for sign in (1, -1)
    )
    differences = [float((g.double() * (a - b)).sum()) / 2 for g, a, b in zip(given, above, below, strict=True)]
    foretold = [float((found[sample] * change).sum()) for sample in range(COUNT)]
    np.testing.assert_allclose(foretold, differences, rtol=0.02, atol=0.02 * float(np.abs(differences).max()))


def test_a_part_of_a_result_is_found(tmp_path: Path) -> None:
    """The host takes the rows of the connector's output that are no padding."""
    bundle = _small(save_minicpmv46(tmp_path / "model"))
    *_, connector, prefill = next(linked_calls(bundle, partial(_one(bundle).prompts, bundle, host_of(bundle))))
    assert [(link.input, link.first) for link in connector.links] == [("vision_features", 0)]
    (link,) = prefill.links
    width = int(np.asarray(prefill.feeds["inputs_embeds"]).shape[-1])
    assert link.input == "inputs_embeds" and link.start % width == link.size % width == 0
    embeds = np.asarray(prefill.feeds["inputs_embeds"]).reshape(-1)
    assert np.isnan(embeds[link.start : link.start + link.size]).all()
    assert np.count_nonzero(np.isnan(embeds)) == link.size


def test_a_host_that_computes_between_components_is_refused(bundle: ModelBundle, tmp_path: Path) -> None:
    answers = _answers(bundle)

    def doubled(executors: Mapping[str, Executor]) -> Iterator[tuple[ImagePrompt, Arrays]]:
        for prompt, feeds in answers.prompts(bundle, host_of(bundle), executors):
            yield replace(prompt, vision=[2 * np.asarray(tokens) for tokens in prompt.vision]), feeds

    with pytest.raises(UsageError, match="inputs_embeds of prefill is computed from another component's results"):
        next(linked_calls(bundle, doubled))
    qwen = _small(save_qwen_vl(tmp_path / "qwen", "qwen3_vl"))
    with pytest.raises(UsageError, match="deepstack_embeds_0 of prefill"):
        next(linked_calls(qwen, partial(_one(qwen).prompts, qwen, host_of(qwen))))


def test_no_prompts(bundle: ModelBundle, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no calibration samples"):
        Chain(bundle, [], "hidden", lambda name: Activations(tmp_path / name, 1 << 20), CPU)


def _small(folder: Path) -> ModelBundle:
    source = open_source(folder)
    return family_of(source).load(source, "small", Lengths())


def _one(bundle: ModelBundle) -> Answers:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 90, 3), dtype=np.uint8))
    samples = [(image, "What is it?", None)]
    return Answers(ImageSequences(lambda: iter(samples), 1, int(bundle.config["prompt"]), 0.0, "test", "test"))
