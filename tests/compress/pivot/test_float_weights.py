"""The same numbers from weights that were made floats before."""

import numpy as np
import pytest
from small_models import ROWS, WIDTH, bundle_of, legality

from pocketport.calibration.capture import calibrate
from pocketport.compress.builder import GraphBuilder
from pocketport.compress.executors.ort_executor import OrtExecutor
from pocketport.compress.pivot.apply import apply_plan
from pocketport.compress.pivot.float_weights import with_float_weights
from pocketport.compress.planning.plan import make_plan
from pocketport.compress.recipe import Recipe, Rule


@pytest.mark.parametrize("scheme", ["w8a16", "w4b16a16", "w4pa16", "w2p16a16"])
def test_results_are_the_same_to_the_bit(scheme: str) -> None:
    rng = np.random.default_rng(0)
    g = GraphBuilder("main")
    weight = g.weight("w", rng.standard_normal((WIDTH, WIDTH)).astype(np.float32))
    x = g.node("MatMul", [g.input("x", (ROWS, WIDTH)), weight], "layer")
    g.output(g.node("Sigmoid", [x], "last", output="y"))
    bundle = bundle_of(main=g.finish())
    chip = legality(palettes={"bits": [2, 4], "grouped": True})
    feeds = {"x": rng.standard_normal((ROWS, WIDTH)).astype(np.float32)}
    statistics = calibrate({"main": bundle["main"].graph}, [("main", feeds)])
    plan = make_plan(
        bundle,
        Recipe(name="test", rules=[Rule(scheme=scheme, algorithm="kmeans" if "p" in scheme else "mse")]),
        "example/chip",
        chip,
    )
    pivot = apply_plan(bundle, plan, statistics)[0]["main"].graph
    made = with_float_weights(pivot)
    assert len(list(made.graph)) < len(list(pivot.graph))
    assert all(any(v is not None and not v.is_initializer() for v in node.inputs) for node in made.graph)
    (layer,) = (node for node in made.graph if node.name == "layer")
    assert layer.inputs[1] is not None and layer.inputs[1].is_initializer()
    np.testing.assert_array_equal(OrtExecutor(made).run(feeds)["y"], OrtExecutor(pivot).run(feeds)["y"])
    assert any(n.op_type == "DequantizeLinear" or n.op_type == "Gather" for n in pivot.graph)  # which stays as it was
