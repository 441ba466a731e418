"""Pocketport itself, called as the peers of `vision_weights.py` are.

``python pocketport_static.py MODEL CALIBRATION.npz OUT OPTIONS``: OPTIONS is JSON with `bits` of the weights, `operators`
(empty: all activations become integers), `scaled` (whether inputs of layers may be scaled by channel), `rule`, the keys of
a recipe's rule, and perhaps `conditioning`, names of rewrites, and `samples`, how many of them to calibrate on. Prints the seconds without imports as JSON.
"""

import gc
import json
import sys
import time
from importlib import import_module
from pathlib import Path

import numpy as np

from pocketport.calibration.capture import calibrate
from pocketport.compress.bundle import Component, ModelBundle
from pocketport.compress.conditioning.condition import condition
from pocketport.compress.graph import load_graph, save_graph
from pocketport.compress.pivot.apply import apply_plan
from pocketport.compress.planning.legality import ActivationRule, Legality, WeightRule
from pocketport.compress.planning.plan import make_plan
from pocketport.compress.recipe import Conditioning, Recipe, Rule

MAIN = "main"


def legality(bits: int, operators: list[str], *, scaled: bool = True) -> Legality:
    """What onnxruntime's quantizer writes, as the rules of a chip; norms are float where only products are integer."""
    whole = not operators
    return Legality(
        tested_with="", defaults={MAIN: f"w{bits}a8"}, activations={"8": ActivationRule(dtype="uint8", symmetric=False)},
        weights={str(bits): WeightRule(dtype=f"int{bits}", granularities=("c",))}, integer_ops=frozenset(operators), scaled_inputs=bool(operators) and scaled,
        norm_scale_dtype="int8" if whole else "float", norm_bias_dtype="int32" if whole else "float",
    )  # fmt: skip


def main() -> None:
    """Calibrate, plan, quantize and save."""
    model, calibration, out, text = sys.argv[1:]
    options = json.loads(text)
    for name in ("onnxruntime", "pocketport.compress.planning.components"):
        import_module(name)  # which is else done when it is first needed
    gc.freeze()  # as the command line does
    start, cpu = time.perf_counter(), time.process_time()
    bundle = ModelBundle("vision", "onnx", "", {MAIN: Component(MAIN, load_graph(Path(model)))})
    arrays = dict(np.load(calibration))
    count = options.get("samples", len(next(iter(arrays.values()))))
    feeds = [(MAIN, {name: array[i] for name, array in arrays.items()}) for i in range(count)]
    steps = [Conditioning.model_validate({"rewrite": name}) for name in options.get("conditioning", [])]
    bundle, _ = condition(bundle, steps, lambda _: iter(feeds), chained=False)
    recipe = Recipe(name="benchmark", rules=[Rule(**options["rule"])])
    plan = make_plan(bundle, recipe, "x86", legality(options["bits"], options["operators"], scaled=options["scaled"]))
    statistics = calibrate({MAIN: bundle[MAIN].graph}, feeds, hessians=plan.hessians(), only=plan.selection())
    quantized, _ = apply_plan(bundle, plan, statistics, samples=lambda: feeds)
    save_graph(quantized[MAIN].graph, Path(out))
    print(json.dumps({"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu}))


if __name__ == "__main__":
    main()
