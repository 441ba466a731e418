"""What the Neural Engine is reported not to take. No runtime on this host can say where an op runs on the device, so
this is a prediction from published rules, named as such wherever it appears.

Sources: Apple's ``ml-ane-transformers`` and "Deploying Transformers on the Apple Neural Engine" (layout, rank);
aneforge 0.4.0 (PyPI, MIT; a third party's sweep of 166 ops: dimensions, kernel widths, blockwise weights);
hollance/neural-engine (gathers, dilated convolutions).
"""

from collections import Counter
from collections.abc import Iterator

import onnx_ir as ir

from pocketport.compress.graph import constant, inferred, static_shape
from pocketport.compress.pivot.palettes import stored_palettes
from pocketport.diagnostics import Diagnostic, Severity
from pocketport.targets.apple.target import Chip
from pocketport.targets.contract import Offload

SOURCE = "rules of the Neural Engine (published limits; predicted, not observed)"
MAXIMUM_RANK = 5
MAXIMUM_KERNEL = 13
QUANTIZATION = ("QuantizeLinear", "DequantizeLinear")


def lint(model: ir.Model, component: str, chip: Chip) -> tuple[Offload, tuple[Diagnostic, ...]]:
    """Predicted offload, and one Diagnostic per reason why something stays off the Neural Engine."""
    model = inferred(model)
    looking_up = {node for palette in stored_palettes(model.graph).values() for node in palette.nodes}
    stored = {n for n in model.graph if n.op_type in QUANTIZATION or constant(n.outputs[0]) is not None} | looking_up
    compute = [n for n in model.graph if n not in stored]
    reasons = {node: reason for node in compute if (reason := next(_reasons(node, chip), None)) is not None}
    elsewhere = tuple(f"{node.op_type} {node.name}" for node in reasons)
    offload = Offload(len(compute) - len(reasons), len(compute), SOURCE, elsewhere)
    found = [
        Diagnostic(
            "apple.residency-unobserved", Severity.NOTE, component,
            "where each op runs on the device can't be observed on this host; the offload is predicted from published rules",
            "profile the .mlpackage or .aimodel with Xcode on a device",
        )
    ]  # fmt: skip
    for reason, count in Counter(reasons.values()).items():
        names = [str(n.name) for n, r in reasons.items() if r == reason]
        where = f"{component}, {count} node(s): {', '.join(names[:3])}{' …' if count > 3 else ''}"
        found.append(Diagnostic("apple.off-engine", Severity.WARNING, where, reason, "expect it on the CPU or GPU"))
    blocked = [n for n in model.graph if n.op_type == "DequantizeLinear" and "block_size" in n.attributes]
    if blocked:
        found.append(
            Diagnostic(
                "apple.blocked-weights", Severity.WARNING, f"{component}, {len(blocked)} weight(s)",
                "blockwise weights are reported to be expanded to float16, or computed wrongly, on the Neural Engine",
                "use one scale per channel (w4c, w8c) or a palette (w4p16), or run on the GPU",
            )
        )  # fmt: skip
    return offload, tuple(found)


def _reasons(node: ir.Node, chip: Chip) -> Iterator[str]:
    values = [v for v in (*node.inputs, *node.outputs) if v is not None and constant(v) is None]
    shapes = [s for s in (static_shape(v) for v in values) if s is not None]
    if any(len(s) > MAXIMUM_RANK for s in shapes):
        yield f"tensors of rank above {MAXIMUM_RANK} are not taken"
    if any(d > chip.dimension for s in shapes for d in s):
        yield f"a dimension above {chip.dimension} is not taken"
    if node.op_type == "Gather" and constant(node.inputs[1]) is None:
        yield "lookups by run-time indices are reported to run on the CPU"
    if node.op_type in ("Conv", "ConvTranspose"):
        kernel = static_shape(node.inputs[1]) if node.inputs[1] is not None else None
        strides = node.attributes.get_ints("strides", (1, 1))
        if kernel is not None and any(k > MAXIMUM_KERNEL and k != s for k, s in zip(kernel[2:], strides, strict=False)):
            yield f"kernels wider than {MAXIMUM_KERNEL} are not taken"
