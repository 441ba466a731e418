"""Which tensors of a graph feed linear layers and convolutions."""

import onnx_ir as ir

from pocketport.calibration.taps import Window, window_of

LINEAR_OPS = frozenset({"Gemm", "MatMul"})
CONVOLUTIONS = frozenset({"Conv", "ConvTranspose"})


def linear_inputs(graph: ir.Model) -> dict[str, ir.Value]:
    """Inputs of Gemm and MatMul whose other operand is a weight, by name."""
    found: dict[str, ir.Value] = {}
    for node in graph.graph:
        if node.op_type not in LINEAR_OPS or node.inputs[0] is None or node.inputs[1] is None:
            continue
        if ir.convenience.get_const_tensor(node.inputs[1]) is not None and not _transposed(node):
            found[node.inputs[0].name or ""] = node.inputs[0]
    return found


def convolution_inputs(graph: ir.Model) -> frozenset[str]:
    """Inputs of convolutions whose weight is constant."""
    return frozenset(
        node.inputs[0].name or ""
        for node in graph.graph
        if node.op_type in CONVOLUTIONS and node.inputs[0] is not None
        and ir.convenience.get_const_tensor(node.inputs[1]) is not None  # type: ignore[arg-type]
    )  # fmt: skip


def windows(graph: ir.Model) -> dict[str, list[tuple[str, Window]]]:
    """Input → (weight, window) of the convolutions that read it; a weight of several nodes has no mean input."""
    found: dict[str, list[tuple[str, Window]]] = {}
    for node in graph.graph:
        window, x = window_of(node), node.inputs[0] if node.inputs else None
        if window is not None and x is not None and len(node.inputs[1].uses()) == 1:  # type: ignore[union-attr]
            found.setdefault(x.name or "", []).append((node.inputs[1].name or "", window))  # type: ignore[union-attr]
    return found


def _transposed(node: ir.Node) -> bool:
    attribute = node.attributes.get("transA")
    return attribute is not None and bool(attribute.as_int())
