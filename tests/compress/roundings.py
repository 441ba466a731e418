"""Roundings by onnxruntime's own QuantizeLinear and DequantizeLinear, on graphs edited with nothing but the onnx package."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from onnx import helper, numpy_helper
from small_models import legality

from pocketport.calibration.capture import calibrate
from pocketport.calibration.encodings import EncodingTable
from pocketport.compress.bundle import ModelBundle
from pocketport.compress.graph import save_graph
from pocketport.compress.pivot.apply import apply_plan
from pocketport.compress.planning.plan import Plan, make_plan
from pocketport.compress.recipe import Recipe


def quantized(source: tuple, scheme: str, **changes: object) -> tuple[ModelBundle, ModelBundle, Plan, EncodingTable]:
    bundle, feeds = source
    recipe = Recipe.model_validate({"name": "t", "rules": [{"scheme": scheme}]})
    defaults = {"main": "w8a16", "prefill": "w8a16", "decode": "w8a16", "head": "w8a16"}
    plan = make_plan(bundle, recipe, "x/y", legality(defaults=defaults, **changes))
    statistics = calibrate({c.name: c.graph for c in bundle}, feeds, hessians=plan.hessians())
    pivot, table = apply_plan(bundle, plan, statistics)
    return bundle, pivot, plan, table


class Samples:
    """Held-out samples without padding."""

    def __init__(self, graph: ir.Model, feeds: Sequence[dict[str, np.ndarray]], folder: Path) -> None:
        self.feeds = list(feeds)
        proto = as_proto(graph, folder)
        self.outputs = [run(proto, f) for f in self.feeds]

    def used(self, results: Sequence[dict[str, np.ndarray]], key: str) -> np.ndarray:
        return np.concatenate([np.asarray(r[key], np.float64).ravel() for r in results])


def as_proto(graph: ir.Model, folder: Path) -> onnx.ModelProto:
    save_graph(graph, folder / "graph.onnx")
    return onnx.load(folder / "graph.onnx")


def run(proto: onnx.ModelProto, feeds: dict[str, np.ndarray], extra: Sequence[str] = ()) -> dict[str, np.ndarray]:
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    known = {o.name for o in copy.graph.output}
    copy.graph.output.extend(helper.make_empty_tensor_value_info(n) for n in extra if n not in known)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(copy.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


def stored(pivot: onnx.ModelProto, tensor: str) -> np.ndarray:
    """What a constant's integers stand for, as onnxruntime dequantizes them."""
    node = next(n for n in pivot.graph.node if n.op_type == "DequantizeLinear" and n.output[0] == f"{tensor}/dq")
    parts = [i for i in pivot.graph.initializer if i.name in node.input]
    graph = helper.make_graph([node], "g", [], [helper.make_empty_tensor_value_info(node.output[0])], parts)
    model = helper.make_model(graph, opset_imports=pivot.opset_import, ir_version=pivot.ir_version)
    return run(model, {})[node.output[0]]


def rounded(pivot: onnx.ModelProto, tensor: str, values: np.ndarray) -> np.ndarray:
    """An activation through its QuantizeLinear and DequantizeLinear."""
    quantize = next(n for n in pivot.graph.node if n.op_type == "QuantizeLinear" and n.output[0] == f"{tensor}/q")
    restore = next(n for n in pivot.graph.node if n.op_type == "DequantizeLinear" and n.input[0] == f"{tensor}/q")
    parts = [i for i in pivot.graph.initializer if i.name in (*quantize.input, *restore.input)]
    graph = helper.make_graph(
        [quantize, restore],
        "g",
        [helper.make_tensor_value_info(quantize.input[0], onnx.TensorProto.FLOAT, values.shape)],
        [helper.make_empty_tensor_value_info(restore.output[0])],
        parts,
    )
    model = helper.make_model(graph, opset_imports=pivot.opset_import, ir_version=pivot.ir_version)
    return run(model, {quantize.input[0]: values})[restore.output[0]]


def with_constants(proto: onnx.ModelProto, arrays: dict[str, np.ndarray]) -> onnx.ModelProto:
    """The graph with other values in some initializers."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    for tensor in copy.graph.initializer:
        if tensor.name in arrays:
            tensor.CopyFrom(numpy_helper.from_array(arrays[tensor.name], tensor.name))
    return copy
