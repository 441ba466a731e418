"""Makes a program bearable for the Linux runtime, for execution only; the artifact is never changed.

Two things are done to the program that was read from the file, neither of which changes what it means:

- weights are expanded once, by the runtime itself, instead of at every run;
- float16 products and transcendental functions run in float32 and are rounded to float16 once. The runtime computes
  them in software: a product 200 times slower than in float32, and accumulated in float16 as no Apple hardware
  does; the others 4 to 8 times slower.
"""

from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pocketport.targets.apple.coreai_program import FUNCTION
from pocketport.targets.apple.coreai_runtime import OpenProgram

EXPANSIONS = frozenset({"coreai.blockwise_shift_scale", "coreai.lut_to_dense"})
WIDENED = frozenset(
    {"coreai.decomposable.broadcasting_batch_matmul", "coreai.gelu", "coreai.softmax", "coreai.tanh", "coreai.erf"}
)

Dense: TypeAlias = list[NDArray[np.generic]]


def prepare(source: Path, folder: Path) -> Path:
    """Write the prepared form of `source` into `folder` and return where."""
    from coreai.authoring import AIModelAsset

    asset = AIModelAsset.load(source)
    program = asset.program
    weights = _insert_weights(program, _expanded(asset.program, folder / "weights.aimodel"))
    _widen(program, weights)
    program.save_asset(folder / "prepared.aimodel")
    return folder / "prepared.aimodel"


def _operations(program: Any) -> tuple[Any, list[Any]]:
    """The main graph and its operations."""
    graph = program._get_graph(FUNCTION)
    return graph, [op.operation for op in graph.regions[0].blocks[0].operations]


def _expanded(program: Any, path: Path) -> Dense:
    """What the runtime makes of each compressed weight of `program`, in order; `program` is used up."""
    from coreai._compiler.ir import ArrayAttr, Location

    graph, operations = _operations(program)
    found = [op.results[0] for op in operations if op.name in EXPANSIONS]
    if not found:
        return []
    with graph.context, Location.unknown():
        graph.res_attrs = ArrayAttr.get([])
        graph.outputs_spec = [(f"weight_{i}", value) for i, value in enumerate(found)]
    kinds = {str(n): np.int32 if "si32" in str(t) else np.float16 for n, t in _parameters(graph)}
    program.save_asset(path)
    opened = OpenProgram(path)
    results = opened.run({name: np.zeros(shape, kinds[name]) for name, shape in opened.inputs.items()})
    opened.close()
    return [results[f"weight_{i}"] for i in range(len(found))]


def _parameters(graph: Any) -> list[tuple[str, Any]]:
    names = [attributes["coreai.name"].value for attributes in graph.arg_attrs]
    return list(zip(names, graph.type.inputs, strict=True))


def _insert_weights(program: Any, dense: Dense) -> dict[Any, NDArray[np.generic]]:
    """Put the expanded weights in the place of their expansion; value → array."""
    from coreai._compiler.ir import F16Type, InsertionPoint

    graph, operations = _operations(program)
    inserted = {}
    with graph.context:
        for index, op in enumerate(op for op in operations if op.name in EXPANSIONS):
            with InsertionPoint(op):
                value = _constant(dense[index], f"dense_{index}", F16Type.get())
            op.results[0].replace_all_uses_with(value)
            op.erase()
            inserted[value] = dense[index]
    return inserted


def _constant(array: NDArray[np.generic], name: str, element: Any) -> Any:
    from coreai._compiler.dialects.coreai import ConstantOp
    from coreai._compiler.ir import DenseResourceElementsAttr, Location, RankedTensorType

    kind = RankedTensorType.get(list(array.shape), element, loc=Location.unknown())
    value = DenseResourceElementsAttr.get_from_buffer(np.ascontiguousarray(array), name, kind, 16)
    return ConstantOp(value=value, loc=Location.unknown()).result


def _widen(program: Any, weights: dict[Any, NDArray[np.generic]]) -> None:
    """Float32 between casts for what is in WIDENED; a weight is widened before, not at every run."""
    from coreai._compiler.ir import F16Type, F32Type, InsertionPoint, Location, Operation, RankedTensorType

    graph, operations = _operations(program)
    with graph.context, Location.unknown():
        half, full = F16Type.get(), F32Type.get()

        def cast(value: Any, element: Any) -> Any:
            kind = RankedTensorType.get(value.type.shape, element)
            return Operation.create("coreai.cast", results=[kind], operands=[value]).result

        def widened(value: Any) -> Any:
            if value.type.element_type != half:
                return value
            if value in weights:
                return _constant(weights[value].astype(np.float32), "wide", full)
            return cast(value, full)

        for op in operations:
            if op.name not in WIDENED or op.results[0].type.element_type != half:
                continue
            with InsertionPoint(op):
                kind = RankedTensorType.get(op.results[0].type.shape, full)
                attributes = {attribute.name: attribute.attr for attribute in op.attributes}
                operands = [widened(value) for value in op.operands]
                wide = Operation.create(op.name, results=[kind], operands=operands, attributes=attributes)
                result = cast(wide.result, half)
            op.results[0].replace_all_uses_with(result)
            op.erase()
