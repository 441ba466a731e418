"""Rotations that the device computes: float in the plan, refused where they give nothing."""

import numpy as np
import onnx_ir as ir
import pytest
from small_models import block_bundle, bundle_of, legality

from pocketport.compress.builder import GraphBuilder
from pocketport.compress.conditioning.hadamard import hadamard_matrix
from pocketport.compress.planning.legality import Legality
from pocketport.compress.planning.plan import make_plan
from pocketport.compress.recipe import Recipe
from pocketport.compress.structure import is_rotation
from pocketport.errors import UsageError
from pocketport.targets.contract import Target
from pocketport.targets.registry import backend_for


def recipe(scheme: str = "w8a8", component: str = "*") -> Recipe:
    step = {"rewrite": "rotate_online", "component": component}
    return Recipe.model_validate({"name": "turned", "conditioning": [step], "rules": [{"scheme": scheme}]})


def chip(**changes: object) -> Legality:
    return legality(integer_ops=["Gemm", "MatMul"], float_bits=[32], **{"online_rotations": True, **changes})


def product(matrix: np.ndarray, *, first: bool = False) -> ir.Model:
    """x [4, 4] times a constant, times a weight."""
    g = GraphBuilder("main")
    x, h = g.input("x", (4, 4)), g.weight("matrix", matrix.astype(np.float32))
    x = g.node("MatMul", [h, x] if first else [x, h], "turned")
    g.output(g.node("MatMul", [x, g.weight("weight", np.ones((4, 3), np.float32))], "layer"))
    return g.finish()


HADAMARD = np.asarray(hadamard_matrix(4)) / 2


@pytest.mark.parametrize(
    ("matrix", "rotation"),
    [(HADAMARD, True), (HADAMARD.T * 2, True), (np.eye(4), False), (np.ones((4, 4)), False), (HADAMARD * [1, 1, 1, 2], False)],
)  # fmt: skip
def test_rotations_are_hadamard_matrices(matrix: np.ndarray, rotation: bool) -> None:
    for first in (False, True):
        node = next(n for n in product(matrix, first=first).graph if n.name == "turned")
        assert is_rotation(node) is rotation


@pytest.mark.parametrize("first", [False, True])
def test_they_are_float_and_what_is_behind_them_is_not(first: bool) -> None:
    bundle = bundle_of(main=product(HADAMARD, first=first))
    plans = {t.tensor: t.dtype for t in make_plan(bundle, recipe(), "x/y", chip())["main"].tensors}
    assert plans == {"matrix": "float", "weight": "int8", "x": "float", "turned": "uint8", "layer": "float"}
    other = bundle_of(main=product(HADAMARD * [1, 1, 1, 2], first=first))
    plans = {t.tensor: t.dtype for t in make_plan(other, recipe(), "x/y", chip())["main"].tensors}
    assert plans["x"] == "uint8" and plans["matrix"] != "float"


def test_chips_that_would_round_first_refuse_them() -> None:
    bundle, _ = block_bundle()
    make_plan(bundle, recipe(), "x/y", chip())
    with pytest.raises(UsageError, match="rounded before they are spread"):
        make_plan(bundle, recipe(), "x/y", chip(online_rotations=False))
    for name, taken in (
        ("x86", True),
        ("qualcomm/sm8650", False),
        ("apple/a17-pro", False),
        ("mediatek/mt6989", False),
    ):
        target = Target.parse(name)
        assert backend_for(target).legality(target).online_rotations is taken


def test_components_with_float_activations_refuse_them() -> None:
    bundle, _ = block_bundle()
    with pytest.raises(UsageError, match="activations of main stay float"):
        make_plan(bundle, recipe("w4b32fp32"), "x/y", chip(online_rotations=False))
    make_plan(bundle, recipe("w4b32fp32", component="other"), "x/y", chip())
