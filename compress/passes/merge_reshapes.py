"""Reshapes one behind another are one."""

import onnx_ir as ir

from pocketport.compress.graph import static_shape
from pocketport.compress.passes.base import Pass, PassResult
from pocketport.compress.passes.rows import shape_constant

RESHAPING_OPS = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze"})


class MergeReshapes(Pass):
    """A Reshape of what was only reshaped reads that from before it was."""

    def rewrite(self, graph: ir.Model) -> PassResult:
        """Rewire the later one of each pair; the earlier is left to dead-code removal."""
        modified = False
        for node in graph.graph:
            value = node.inputs[0] if node.op_type == "Reshape" and not node.domain else None
            earlier = None if value is None else value.producer()
            shape = static_shape(node.outputs[0])
            if earlier is None or earlier.op_type not in RESHAPING_OPS or earlier.domain or not shape or 0 in shape:
                continue
            node.replace_input_with(0, earlier.inputs[0])
            node.replace_input_with(1, shape_constant(graph.graph, shape))
            modified = True
        return PassResult(graph, modified)
