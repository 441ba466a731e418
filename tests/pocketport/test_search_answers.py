"""Mixed precision for a target by what its whole model answers about images."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from pocketport.cli import app
from pocketport.compress.mixed_precision.allocation import Allocation
from pocketport.compress.mixed_precision.sensitivity import LOSS
from pocketport.compress.recipe import load_recipe
from pocketport.errors import UsageError
from pocketport.request import Request
from pocketport.stages.context import Context
from pocketport.stages.expected_answers import chat_over
from pocketport.stages.image_sequences import Answers
from pocketport.stages.search_target import TargetSearch
from pocketport.stages.searched import Budget
from pocketport.store import Store
from tests.pocketport.conftest import perceptron

TARGET = "apple/a18-pro"
SCHEMES = ("w4cfp16", "w4b32fp16", "w8cfp16")
IMAGES = 16


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "mse.yaml"
    path.write_text("version: 1\nname: mse\nrules: [{algorithm: mse}]\n")
    return path


@pytest.fixture(scope="module")
def search(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> TargetSearch:
    folder = tmp_path_factory.mktemp("search")
    request = Request(source="reference", targets=[TARGET], recipe=str(recipe), calibration_samples=4)
    context = Context(request, Store(folder / "cache"), folder)
    return TargetSearch(context, SCHEMES, samples=2 * IMAGES, measured=IMAGES)


def _uniform(search: TargetSearch, scheme: str, component: str) -> Allocation:
    """The scheme for the layers of one component, 8 bits for all others."""
    schemes = {
        layer.name: scheme if layer.nodes[0].component == component else "w8cfp16" for layer in search.found.layers
    }
    return Allocation(scheme, schemes, 0.0, 0.0)


@pytest.mark.parametrize("component", ["vision", "connector", "prefill"])
def test_losses_are_what_the_whole_model_measures(component: str, search: TargetSearch) -> None:
    """Layers of each component: half the square of what their effects sum up to is the divergence of each answer.

    Effects are drawn from random signs, so that |e| has the mean √(2/π) of its deviation; and roots are compared, for the
    divergence of most answers is small. In 4 bits that of the connector is more than of second order.
    """
    layers = search.found.layers
    allocation = _uniform(search, "w4cfp16", component)
    measured = search.quality(allocation.rules(layers), search.answers.samples)
    effects = search.effects
    assert effects is not None
    together = np.sum([effects[w][allocation.schemes[layer.name]] for layer in layers for w in layer.weights], axis=0)
    foretold = float(np.abs(together).mean()) * np.sqrt(np.pi / 2) / np.sqrt(2)
    assert 0.5 < float(np.sqrt(measured.sums).mean()) / foretold < 2


def test_nothing_is_measured_on_what_was_calibrated_on(search: TargetSearch) -> None:
    """Fewer images for errors than for calibration: those to measure on lie behind both."""
    few, behind = search.answers.data(2, 3)
    calibrated = search.context.request.calibration_samples
    assert (few.count, behind.count, calibrated) == (2, 3, 4)
    every = _answers_of(search.answers.data(calibrated + 3, 1)[0])
    assert _answers_of(few) == every[:2] and _answers_of(behind) == every[calibrated:]


def _answers_of(answers: Answers) -> list[str | None]:
    return [answer for _, _, answer in answers.images.samples()]


def test_every_component_is_searched(search: TargetSearch) -> None:
    assert {layer.nodes[0].component for layer in search.found.layers} == {"vision", "connector", "prefill"}
    head = next(layer for layer in search.found.layers if "lm_head" in layer.name)
    assert 0 < head.error(search.errors, "w8cfp16", LOSS) < head.error(search.errors, "w4cfp16", LOSS)
    assert search.effects is not None
    sizes = {s: sum(float(np.square(own[s]).sum()) / 2 for own in search.effects.values()) for s in SCHEMES}
    losses = {s: sum(errors[s][LOSS] for errors in search.errors.values()) for s in SCHEMES}
    assert sizes["w8cfp16"] < sizes["w4b32fp16"] < sizes["w4cfp16"]
    np.testing.assert_allclose(*([of[s] for s in SCHEMES] for of in (sizes, losses)), rtol=0.3)
    bits = 6.0
    searched = search.search(Budget(bits=bits), confirm=False)
    assert searched.bytes_of(searched.best) <= bits * searched.elements / 8


def test_known_answers_are_forced_and_other_images_get_the_models_own(search: TargetSearch) -> None:
    """The float graphs diverge from themselves by nothing, token by token."""
    answers = search.answers
    part = answers.measured.part(0, 2)
    expected = answers.expected(part)
    texts = [answer for _, _, answer in part.images.samples()]
    assert [len(tokens) for tokens in expected.tokens] == [
        len(text) + 1 for text in texts if text
    ]  # bytes, and the turn's end
    same = expected.compared(search.bundle, part)
    assert same.divergence < 1e-9 and same.positions == sum(map(len, expected.tokens))
    unknown = [(image, question, None) for image, question, _ in part.images.samples()]
    asked = Answers(replace(part.images, samples=lambda: iter(unknown), data="unknown"))
    chat = chat_over(search.bundle)
    own = [chat.read(image, question).token_ids for image, question, _ in unknown]
    assert [tokens.tolist() for tokens in answers.expected(asked).tokens] == own


def test_a_recipe_for_answers(recipe: Path, tmp_path: Path) -> None:
    """The command, end to end: the divergence decides, and what is written holds rules for every component."""
    out = tmp_path / "mixed.yaml"
    arguments = [
        "search", "reference", "--target", TARGET, "--recipe", str(recipe), "--budget-bits", "6", "--schemes", ",".join(SCHEMES),
        "--calibration-samples", "2", "--error-samples", "4", "--measured-samples", "2", "--out", str(out), "--json",
        "--cache", str(tmp_path / "cache"),
    ]  # fmt: skip
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    measured = [c["measured"]["divergence"] for c in json.loads(done.stdout)["candidates"]]
    assert measured == sorted(measured) and measured[0] > 0
    components = {rule.component for rule in load_recipe(out).rules_for(TARGET) if rule.component != "*"}
    assert components == {"vision", "connector", "prefill", "decode"}


def test_objectives_that_a_model_does_not_have(tmp_path: Path) -> None:
    data = tmp_path / "samples.npz"
    np.savez(data, x=np.zeros((4, 1, 16), np.float32))
    arguments = [
        "search", str(perceptron(tmp_path / "perceptron.onnx")), "--target", "x86", "--budget-bits", "9", "--data", str(data),
        "--out", str(tmp_path / "mixed.yaml"),
    ]  # fmt: skip

    def refused(*more: str) -> str:
        done = CliRunner().invoke(app, [*arguments, *more])
        assert isinstance(done.exception, UsageError)
        return str(done.exception)

    assert "does not answer about images" in refused("--objective", "answers")
    assert "objectives of a target are answers and outputs" in refused("--objective", "labels")
    assert "noise at outputs is taken from the calibration samples" in refused("--error-samples", "8")
