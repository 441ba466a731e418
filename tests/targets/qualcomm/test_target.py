"""SoCs as data, and what `check` says before anything is compiled."""

import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from pocketport.diagnostics import Severity
from pocketport.errors import UsageError
from pocketport.targets.contract import Target
from pocketport.targets.qualcomm import backend
from pocketport.targets.qualcomm.target import SOCS, find_soc

from .blocks import decoder, vision
from .op_graphs import OPS
from .pivots import Sketch

PHONE = Target("qualcomm", "sm8650")


def test_every_soc_has_a_number_of_its_own() -> None:
    assert len({soc.model for soc in SOCS.values()}) == len(SOCS)
    assert all(soc.name == name and soc.arch in (68, 69, 73, 75, 79, 81) for name, soc in SOCS.items())


def test_an_unknown_soc_names_the_nearest() -> None:
    with pytest.raises(UsageError, match="sm8560") as caught:
        find_soc(Target("qualcomm", "sm8560"))
    assert "sm8650" in caught.value.fix


def test_the_op_list_is_the_tested_one() -> None:
    assert backend.legality(PHONE).ops - {"Greater"} == set(OPS)


@pytest.mark.parametrize("build", [vision, decoder])
def test_a_supported_graph_has_no_findings(build) -> None:  # type: ignore[no-untyped-def]
    sketch = Sketch()
    assert backend.check("main", ir.from_proto(sketch.model(*build(sketch))), PHONE) == ()


def test_ranks_and_dynamic_shapes_are_named_by_node() -> None:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ("n", 2, 3))
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    z = helper.make_tensor_value_info("z", TensorProto.FLOAT, (1, 1, 1, 1, 2, 3))
    axes = helper.make_tensor("axes", TensorProto.INT64, (4,), [0, 1, 2, 3])
    constant = helper.make_tensor("c", TensorProto.FLOAT, (2, 3), [0.0] * 6)
    nodes = [
        helper.make_node("Relu", ["x"], ["y"], "grows"),
        helper.make_node("Unsqueeze", ["c", "axes"], ["z"], "tall"),
    ]
    model = helper.make_model(helper.make_graph(nodes, "g", [x], [y, z], [axes, constant]), ir_version=11)
    found = {d.code: d for d in backend.check("main", ir.from_proto(model), PHONE)}
    assert "grows" in found["qualcomm.dynamic-shape"].where
    assert "tall" in found["qualcomm.rank"].where
    assert all(d.severity is Severity.ERROR and d.fix for d in found.values())
