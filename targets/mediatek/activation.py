"""Relu and Clip that follow an op and can be computed inside it."""

import onnx_ir as ir

from pocketport.targets.mediatek.lowering import Lowering

# Codes of the schema's ActivationFunctionType, by the interval that they keep.
NONE, RELU = 0, 1
_CODES: dict[tuple[float, float], int] = {(0.0, float("inf")): RELU, (-1.0, 1.0): 2, (0.0, 6.0): 3}


def interval(context: Lowering, node: ir.Node) -> tuple[float, float] | None:
    """The [low, high] that a Relu or Clip keeps; None for another op, or bounds that are computed."""
    if node.op_type == "Relu":
        return 0.0, float("inf")
    if node.op_type != "Clip":
        return None
    bounds = [-float("inf"), float("inf")]
    for place, value in enumerate(node.inputs[1:3]):
        if value is None:
            continue
        held = context.weight(value)
        if held is None:
            return None
        bounds[place] = float(held.real().reshape(()))
    return bounds[0], bounds[1]


def fused_activation(context: Lowering, node: ir.Node) -> tuple[int, ir.Value]:
    """The activation code and the value to define: of the Relu/Clip that alone reads `node`'s output, if any.

    The activation is marked as folded. It isn't fused when the pivot quantizes the value between the two.
    """
    output = node.outputs[0]
    uses = list(output.uses())
    if len(uses) == 1 and not output.is_graph_output():
        follower = uses[0].node
        kept = interval(context, follower)
        if kept in _CODES:
            context.folded.add(follower)
            return _CODES[kept], follower.outputs[0]
    return NONE, output
