"""How far a graph's results move when the last bits of its layers do, as another order of summation would have it.

A deep 8-bit graph turns a last-bit difference into a flipped rounding, and that into noise as large as its own. Moving
the inputs alone shows little of it: engines differ in every layer, and each has roundings behind it that may flip.
"""

import tempfile
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from pocketport.compress.graph import constant, load_graph, save_graph
from pocketport.targets.contract import Arrays
from pocketport.targets.x86.engines import MODEL_FILE, REFERENCE, open_engine
from pocketport.targets.x86.settings import ONNX

NUDGE = 1e-6


def shaken_outputs(pivot: Path, feeds: Arrays) -> Mapping[str, NDArray[np.generic]]:
    """What the graph, run op by op, gives with float inputs and the scales of its constants a few units in the last place away."""
    rng = np.random.default_rng(1)
    nudged = {name: _nudged(x, rng) if x.dtype == np.float32 else x for name, x in feeds.items()}
    graph = load_graph(pivot)
    stored = (
        node.inputs[1] for node in graph.graph if node.op_type == "DequantizeLinear" and _is_stored(node.inputs[0])
    )
    for scale in dict.fromkeys(value for value in stored if value is not None and _is_stored(value)):
        scale.const_value = ir.Tensor(_nudged(np.asarray(constant(scale)), rng), name=scale.name)
    with tempfile.TemporaryDirectory(prefix="pocketport-shaken-") as folder:
        save_graph(graph, Path(folder) / MODEL_FILE[ONNX])
        with closing(open_engine(ONNX, Path(folder), REFERENCE)) as executor:
            return executor.run(nudged)


def _is_stored(value: ir.Value | None) -> bool:
    return value is not None and value.is_initializer() and value.const_value is not None


def _nudged(x: NDArray[Any], rng: np.random.Generator) -> NDArray[np.float32]:
    return np.asarray(x, np.float32) * (1 + NUDGE * rng.standard_normal(x.shape)).astype(np.float32)
