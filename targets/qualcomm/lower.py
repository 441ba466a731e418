"""Pivot → what the QNN HTP compiler reads. No number of the model changes except where a kernel's width demands it.

The compiler takes the pivot's ops as they are: Gemm with transB becomes FullyConnected, norms, Gelu and Softmax stay
whole, DequantizeLinear of weights is folded in. Rewritten are

* the boundary: QuantizeLinear at inputs and DequantizeLinear at outputs go, so that a phone moves integers (a KV
  cache of 2 bytes an element, never 4) and the accelerator computes no float. The encodings are in ``io.json``.
  Outputs in image layout stay float, but for those with channels last;
* what single kernels demand: ``rewrites.py``, where every rewrite says why;
* forms that are slow: ``slow_pools.py``, ``slow_forms.py``, ``slow_dimensions.py``.
"""

from dataclasses import asdict

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from pocketport.compress.graph import inferred, load_graph, save_graph, static_shape
from pocketport.compress.structure import IMAGE_OPS, LAYOUT_BARRIERS
from pocketport.diagnostics import Diagnostic, Severity
from pocketport.errors import InputError
from pocketport.files import write_json
from pocketport.targets.contract import CompileRequest, Lowered
from pocketport.targets.qualcomm import rewrites, slow_dimensions, slow_forms, slow_pools
from pocketport.targets.qualcomm.qdq import Port, attribute, parameters
from pocketport.targets.qualcomm.target import find_soc

CHANNELS_LAST = (0, 2, 3, 1)
"""The order of dimensions in which onnxruntime keeps images for this provider."""

FASTER = (*slow_pools.REWRITES, *slow_forms.REWRITES, *slow_dimensions.REWRITES)


def lower(request: CompileRequest) -> Lowered:
    """Write ``<component>.onnx``, ``io.json`` and ``options.json`` (for the compiler) into `request.work`.

    Raises:
        InputError: an input or output has no static shape.
    """
    soc, name = find_soc(request.target), request.component
    model = inferred(load_graph(request.pivot))
    for value in (*model.graph.inputs, *model.graph.outputs):
        if static_shape(value) is None:
            why = f"its shape {value.shape} is not static"
            raise InputError(why, where=f"{name}, {value.name}", fix="give the sizes when ingesting")
    diagnostics = rewrites.requantize_second_operands(model, soc, name)
    rewrites.keep_gathered_encodings(model)
    rewrites.fix_saturating_outputs(model)
    rewrites.blocked_gemm_to_matmul(model)
    for rewrite in FASTER:
        rewrite(model)
    if soc.arch == 69:
        rewrites.pad_matmul_rows(model)
    ports = integer_boundary(model)
    RemoveUnusedNodesPass()(model)
    options, findings = block_options(model, name)
    paths = {
        "onnx": request.work / f"{name}.onnx",
        "io": request.work / "io.json",
        "options": request.work / "options.json",
    }
    save_graph(model, paths["onnx"])
    write_json(paths["io"], {key: asdict(port) for key, port in ports.items()})
    write_json(paths["options"], options)
    return Lowered(paths, (*diagnostics, *findings))


def integer_boundary(model: ir.Model) -> dict[str, Port]:
    """Make quantized inputs and outputs integers, in place; their encodings by name."""
    return {**_integer_inputs(model.graph), **_integer_outputs(model.graph)}


def _integer_inputs(graph: ir.Graph) -> dict[str, Port]:
    ports = {}
    for value in graph.inputs:
        users = [node for node, _ in value.uses()]
        encodings = {parameters(node) if node.op_type == "QuantizeLinear" else None for node in users}
        port = encodings.pop() if len(encodings) == 1 else None
        if port is None or value.is_graph_output():
            continue
        value.dtype = ir.DataType[port.dtype.upper()]
        for node in users:
            ir.convenience.replace_all_uses_with(node.outputs[0], value)
            graph.remove(node, safe=True)
        ports[str(value.name)] = port
    return ports


def _integer_outputs(graph: ir.Graph) -> dict[str, Port]:
    ports = {}
    for index, value in enumerate(graph.outputs):
        node = value.producer()
        port = parameters(node) if node is not None and node.op_type == "DequantizeLinear" else None
        source = None if node is None else node.inputs[0]
        if node is None or port is None or source is None or source.producer() is None:
            continue
        if source.is_graph_output() or _may_transpose(source):
            continue
        name = str(value.name)
        graph.outputs[index] = source
        value.name, source.name = f"{name}_real", name
        source.dtype, source.shape = ir.DataType[port.dtype.upper()], value.shape
        if not value.uses():
            graph.remove(node, safe=True)
        ports[name] = port
    return ports


def _may_transpose(value: ir.Value) -> bool:
    """Whether the change to NHWC can leave a Transpose at `value`, which the compiler refuses on plain integers."""
    pending: list[ir.Node | None] = [value.producer()]
    seen: set[ir.Node] = set()
    while pending:
        node = pending.pop()
        if node is None or node in seen or node.op_type in LAYOUT_BARRIERS:
            continue
        if node.op_type == "Transpose" and tuple(node.attributes.get_ints("perm", ())) == CHANNELS_LAST:
            continue  # cancels the one that the change leaves
        if node.op_type in IMAGE_OPS:
            return True
        seen.add(node)
        pending += [v.producer() for v in node.inputs if v is not None]
    return False


def block_options(model: ir.Model, component: str) -> tuple[dict[str, str], list[Diagnostic]]:
    """The compiler's options for blocked weights, and what to say about them.

    Integer kernels need an option, and scales that are k/16 of the channel's. Other scales the option would round
    without a word, so with any of those it stays off and the kernels compute in float16.
    """
    blocked = [n for n in model.graph if n.op_type == "DequantizeLinear" and attribute(n, "block_size", 0)]
    odd = [str(node.name) for node in blocked if not rewrites.has_lpbq_scales(node)]
    if not odd:
        return ({"enable_block_quant_weight_optimization": "1"} if blocked else {}), []
    where = f"{component}: {', '.join(odd[:2])}" + (f" and {len(odd) - 2} more" if odd[2:] else "")
    why = "block scales that are not k/16 of their channel's compute in float16 kernels"
    fix = "set block_scale_levels = 16 for the weights, or use 4 bits per channel (w4a16)"
    return {}, [Diagnostic("qualcomm.float16-blocks", Severity.WARNING, where, why, fix)]
