"""What answers depend on: channels that nothing reads have no gradient, and go into the part that counts least."""

from functools import partial
from pathlib import Path

import numpy as np
import torch

from pocketport.compress.bundle import ModelBundle
from pocketport.compress.conditioning.condition import condition
from pocketport.compress.graph import constant
from pocketport.compress.ingest import ingest
from pocketport.compress.mixed_precision.checkpoint import with_weights
from pocketport.compress.recipe import Conditioning
from pocketport.request import Request
from pocketport.stages.answer_gradients import AnswerGradients, answers_of, squared_gradients

LANGUAGE, VISION = "llm.model.layers.1.mlp", "vpm.encoder.layers.2.mlp"
REQUEST = Request(source="reference", targets=["x86"], calibration_samples=3)


def weight(bundle: ModelBundle, component: str, name: str) -> np.ndarray:
    return np.array(constant(bundle[component].graph.graph.initializers[name]))


def test_dead_channels_have_no_gradient_and_come_first(tmp_path: Path) -> None:
    bundle = ingest("reference")
    dead = np.arange(0, 768, 2)  # half of either MLP
    planted = {}
    for component, name in (("prefill", f"{LANGUAGE}.down_proj.weight"), ("vision", f"{VISION}.fc2.weight")):
        columns = weight(bundle, component, name)
        columns[:, dead] = 0
        planted[name] = torch.from_numpy(columns)
    bundle = with_weights(bundle, planted)
    gradients = AnswerGradients(bundle, answers_of(bundle, REQUEST), REQUEST)
    nodes = {"prefill": [f"{LANGUAGE}.up_proj"], "vision": [f"{VISION}.fc1"], "decode": [f"{LANGUAGE}.up_proj"]}
    found = squared_gradients(gradients, tmp_path / "activations", nodes)
    assert set(found) == {f"prefill/{LANGUAGE}.up_proj", f"vision/{VISION}.fc1"}
    for sums in found.values():
        assert sums.shape == (768,)
        assert not sums[dead].any() and (np.delete(sums, dead) > 0).mean() > 0.95

    step = Conditioning(rewrite="split_hidden", component="[pdv]*", options={"by": "gradients"})
    (after, _) = condition(
        bundle, [step], lambda _: iter(()), chained=True,
        gradients=lambda current, nodes: squared_gradients(
            AnswerGradients(current, answers_of(current, REQUEST), REQUEST), tmp_path / "activations", nodes
        ),
    )  # fmt: skip
    part = partial(weight, after)
    for component, name in (
        ("prefill", f"{LANGUAGE}.down_proj"), ("decode", f"{LANGUAGE}.down_proj"), ("vision", f"{VISION}.fc2")
    ):  # fmt: skip
        assert not part(component, f"{name}.weight.0").any()
        assert part(component, f"{name}.weight.1").any(axis=0).all()
