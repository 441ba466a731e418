"""Index inputs are int32: the width that every target's runtime takes."""

import onnx_ir as ir

from pocketport.compress.passes.base import Pass, PassResult

TAKES_BOTH = frozenset({"Gather", "GatherElements", "Cast"})  # as their index (or only) input


class NarrowInputs(Pass):
    """int64 graph inputs become int32; a Cast is put where a consumer insists on int64."""

    def rewrite(self, graph: ir.Model) -> PassResult:
        """The inputs keep their names and shapes. Indices beyond 2³¹ do not exist in models."""
        modified = False
        for value in graph.graph.inputs:
            if value.dtype != ir.DataType.INT64:
                continue
            modified = True
            value.dtype = ir.DataType.INT32
            strict = [use for use in value.uses() if not _takes_int32(use.node, use.idx)]
            if not strict:
                continue
            cast = ir.node("Cast", [value], {"to": ir.DataType.INT64.value}, name=f"{value.name}.int64")
            wide = cast.outputs[0]
            wide.name, wide.shape, wide.dtype = f"{value.name}.int64", value.shape, ir.DataType.INT64
            for use in strict:
                use.node.replace_input_with(use.idx, wide)
            graph.graph.insert_before(graph.graph[0], cast)
        return PassResult(graph, modified)


def _takes_int32(node: ir.Node, index: int) -> bool:
    return node.op_type in TAKES_BOTH and not node.domain and index == len(node.inputs) - 1
