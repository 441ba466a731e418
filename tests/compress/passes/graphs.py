"""Small graphs in ONNX's own text, and what they compute in onnxruntime."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx.parser
import onnx_ir as ir
from numpy.typing import NDArray

from pocketport.compress.executors.ort_executor import OrtExecutor


def parsed(inputs: str, body: str, outputs: str = "float y") -> ir.Model:
    text = f'<ir_version: 10, opset_import: ["": 23]> graph ({inputs}) => ({outputs}) {{ {body} }}'
    return ir.from_proto(onnx.parser.parse_model(text))


def ops(model: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph)


def computed(model: ir.Model, feeds: Mapping[str, NDArray[np.generic]]) -> NDArray[Any]:
    return next(iter(OrtExecutor(model).run(feeds).values()))
