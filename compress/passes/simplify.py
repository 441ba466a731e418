"""The fixed sequence that turns an exported graph into a plain one: static, folded, one op for one function."""

import onnx_ir as ir
from onnx_ir.passes import common

from pocketport.compress.graph import clone_graph, inferred
from pocketport.compress.passes.base import Pass, PassResult, run_passes
from pocketport.compress.passes.bound_masks import BoundMasks
from pocketport.compress.passes.float_masks import FloatMasks
from pocketport.compress.passes.fold_affine import FoldAffine
from pocketport.compress.passes.fold_constants import FoldConstants
from pocketport.compress.passes.fuse_activations import FuseActivations
from pocketport.compress.passes.fuse_layer_norm import FuseLayerNorm
from pocketport.compress.passes.fuse_linear import FuseLinear
from pocketport.compress.passes.fuse_rms_norm import FuseRMSNorm
from pocketport.compress.passes.keep_rows import KeepRows
from pocketport.compress.passes.merge_reshapes import MergeReshapes
from pocketport.compress.passes.narrow_transposes import NarrowTransposes
from pocketport.compress.passes.plain_gathers import PlainGathers
from pocketport.compress.passes.plain_windows import PlainWindows
from pocketport.compress.passes.prefix_sums import PrefixSums
from pocketport.compress.passes.remove_noops import RemoveNoops
from pocketport.compress.passes.slice_packed import SlicePacked
from pocketport.compress.passes.spell_out import SpellOut
from pocketport.compress.passes.spell_out_attention import SpellOutAttention

MAX_ROUNDS = 16  # each round makes new shapes known; real exports need two or three


class InferShapes(Pass):
    """Fill in the shapes and dtypes that ONNX can infer."""

    def rewrite(self, graph: ir.Model) -> PassResult:
        """Never counts as a change: it adds knowledge, not structure."""
        return PassResult(inferred(graph), modified=False)


class RemoveUnused(Pass):
    """Remove nodes and initializers that no output depends on."""

    def rewrite(self, graph: ir.Model) -> PassResult:
        """As onnx_ir does it."""
        return PassResult(graph, common.RemoveUnusedNodesPass()(graph).modified)


# Behind all others: a norm or an activation that is still spelled out would be moved in pieces.
LINEAR_LAYERS = (
    PlainWindows(),
    NarrowTransposes(),
    FuseLinear(),
    KeepRows(),
    MergeReshapes(),
    RemoveNoops(),
    FoldAffine(),
    RemoveUnused(),
)


def fold(model: ir.Model) -> ir.Model:
    """A copy of `model` in which everything that does not depend on the inputs is a constant, in any opset."""
    model = clone_graph(model)
    common.InlinePass()(model)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    return run_passes(model, [InferShapes(), FoldConstants(), RemoveUnused()], rounds=MAX_ROUNDS).graph


def simplify(model: ir.Model, *, keep_rows: bool = True) -> ir.Model:
    """`fold`, and fewer ops for the same function up to rounding. For opsets from 20 on, where Gelu is an op.

    Args:
        model: unchanged.
        keep_rows: whether to apply `KeepRows`; without it what computes between linear layers stays on the file's own sequences.
    """
    rewrites = [
        RemoveNoops(),
        FoldConstants(),
        FoldAffine(),
        FuseLayerNorm(),
        FuseRMSNorm(),
        FuseActivations(),
        SlicePacked(),
        PlainGathers(),
        PrefixSums(),
        SpellOut(),
        SpellOutAttention(),
        BoundMasks(),
        FloatMasks(),
        RemoveUnused(),
    ]
    model = run_passes(fold(model), [InferShapes(), *rewrites], rounds=MAX_ROUNDS).graph
    linear = [step for step in LINEAR_LAYERS if keep_rows or not isinstance(step, KeepRows)]
    model = run_passes(model, linear, rounds=MAX_ROUNDS).graph
    common.CommonSubexpressionEliminationPass()(model)
    common.RemoveUnusedNodesPass()(model)
    common.NameFixPass()(model)
    return model
