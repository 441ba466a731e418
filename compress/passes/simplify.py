"""The fixed sequence that turns an exported graph into a plain one: static, folded, one op for one function."""

import onnx_ir as ir
from onnx_ir.passes import common

from pocketport.compress.graph import inferred
from pocketport.compress.passes.fold_affine import FoldAffine
from pocketport.compress.passes.fold_constants import FoldConstants
from pocketport.compress.passes.fuse_activations import FuseActivations
from pocketport.compress.passes.fuse_layer_norm import FuseLayerNorm
from pocketport.compress.passes.remove_noops import RemoveNoops

MAX_ROUNDS = 16  # each round makes new shapes known; real exports need two or three


def simplify(model: ir.Model) -> ir.Model:
    """A simplified copy of `model`, with all shapes that ONNX can infer. Its function is unchanged up to rounding."""
    common.InlinePass()(model := model.clone())
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    for _ in range(MAX_ROUNDS):
        model = inferred(model)
        passes = [FoldConstants(), RemoveNoops(), FoldAffine(), FuseLayerNorm(), FuseActivations()]
        modified = [step(model).modified for step in passes]
        common.RemoveUnusedNodesPass()(model)
        if not any(modified):
            break
    common.CommonSubexpressionEliminationPass()(model)
    common.RemoveUnusedNodesPass()(model)
    common.NameFixPass()(model)
    return model
