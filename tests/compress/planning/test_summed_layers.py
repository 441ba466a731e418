"""Which layers are added up with which, and what a plan says of them."""

import json

import numpy as np
import onnx_ir as ir
import pytest
from small_models import bundle_of, legality

from pocketport.compress.builder import GraphBuilder
from pocketport.compress.planning.plan import Plan, TensorKind, make_plan
from pocketport.compress.planning.summed_layers import summed_layers
from pocketport.compress.recipe import Recipe

ROWS, WIDTH = 8, 32
Terms = dict[str, tuple[str, ...]]


class Sum:
    """A graph in the making: layers with inputs of their own that are added up."""

    def __init__(self) -> None:
        self.g = GraphBuilder("main")
        self.rng = np.random.default_rng(0)

    def layer(self, name: str, x: ir.Value | None = None, rows: int = ROWS) -> ir.Value:
        if x is None:
            x = self.g.node("Relu", [self.g.input(f"{name}.in", (rows, WIDTH))], f"{name}.x")
        weight = self.g.weight(f"{name}.weight", self.rng.standard_normal((WIDTH, WIDTH)).astype(np.float32))
        return self.g.node("MatMul", [x, weight], name)

    def add(self, a: ir.Value, b: ir.Value, name: str = "sum") -> ir.Value:
        return self.g.node("Add", [a, b], name)

    def found(self, *outputs: ir.Value) -> list[list[str]]:
        for output in outputs:
            self.g.output(self.g.node("Relu", [output], f"{output.name}.relu"))
        return [[node.name or "" for node in layers] for layers in summed_layers(self.g.finish())]


def test_all_layers_of_a_sum_are_found_whatever_else_is_added() -> None:
    s = Sum()
    residual = s.g.node("Relu", [s.g.input("residual", (ROWS, WIDTH))], "residual.relu")
    a, b, c = (s.layer(name) for name in "abc")
    total = s.add(s.add(a, residual, "one"), s.add(b, c, "two"), "three")
    assert s.found(total, residual) == [["a", "b", "c"]]


def test_what_something_else_reads_or_has_not_its_own_input_is_no_term() -> None:
    s = Sum()
    a, b = s.layer("a"), s.layer("b")
    assert s.found(s.add(a, b), a) == []
    s = Sum()
    a = s.layer("a")
    b = s.layer("b", s.g.node("Relu", [a], "behind"))
    assert s.found(s.add(a, b)) == []  # b reads a's output
    s = Sum()
    x = s.g.node("Relu", [s.g.input("x", (ROWS, WIDTH))], "x.relu")
    assert s.found(s.add(s.layer("a", x), s.layer("b", x))) == []
    s = Sum()
    assert s.found(s.add(s.layer("a"), s.layer("b", rows=1))) == []  # b is repeated for every row


def plan_of(recipe: dict[str, object]) -> tuple[Plan, Terms]:
    s = Sum()
    total = s.add(s.add(s.layer("a"), s.layer("b"), "one"), s.layer("c"), "two")
    s.g.output(s.g.node("Relu", [total], "end"))
    plan = make_plan(
        bundle_of(main=s.g.finish()), Recipe.model_validate({"name": "t", **recipe}), "x/y", legality(low_rank=True)
    )
    return plan, {t.node: t.terms for t in plan["main"].tensors if t.kind is TensorKind.WEIGHT}


def test_weights_are_rounded_together_where_gptq_rounds_one_of_them() -> None:
    together = ("a.x", "b.x", "c.x")
    plan, terms = plan_of({"rules": [{"scheme": "w4a16"}]})
    assert terms == dict.fromkeys("abc", together)
    assert plan.hessians() == {"main": ["a.x + b.x + c.x"]}
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    rules = [{"scheme": "w4a16"}, {"name": "b", "scheme": "w8a16"}]  # b by mse
    assert plan_of({"rules": rules})[1] == dict.fromkeys("abc", together)
    assert plan_of({"rules": [{"scheme": "w4a16", "algorithm": "mse"}]})[1] == dict.fromkeys("abc", ())


@pytest.mark.parametrize(
    "rule", [{"scheme": "w4fp32", "low_rank": 4}, {"scheme": "float"}, {"algorithm": "gptq", "algorithm_options": {"sweeps": 1}}]
)  # fmt: skip
def test_float_corrected_and_sampled_ones_stay_out(rule: dict[str, object]) -> None:
    rules = [{"scheme": "w4a16"}, {"name": "b", **rule}]
    plan, terms = plan_of({"rules": rules})
    assert terms == {"a": ("a.x", "c.x"), "b": (), "c": ("a.x", "c.x")}
    assert "a.x + c.x" in plan.hessians()["main"]
