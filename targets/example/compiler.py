"""The example chip's toolchain: a program is a list of ops (JSON) and its constants (npz)."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from pocketport.calibration.storage import write_npz
from pocketport.compress.graph import load_graph
from pocketport.errors import ToolchainError
from pocketport.files import atomic_directory, write_json
from pocketport.targets.example.runtime import FORMAT, KERNELS, PROGRAM, WEIGHTS


def translate(pivot: Path, directory: Path) -> None:
    """Write the pivot as ``program.json`` and ``weights.npz``; scales, zero points and integers are kept as they are."""
    graph = load_graph(pivot).graph
    ops = [
        {
            "op": node.op_type,
            "name": node.name or "",
            "inputs": [value.name if value is not None else None for value in node.inputs],
            "outputs": [value.name for value in node.outputs],
            "attributes": {name: _plain(attribute) for name, attribute in sorted(node.attributes.items())},
        }
        for node in graph
    ]
    constants = {
        name: _storable(value.const_value.numpy())
        for name, value in graph.initializers.items()
        if value.const_value is not None
    }
    directory.mkdir(parents=True, exist_ok=True)
    write_npz(directory / WEIGHTS, constants)
    write_json(
        directory / PROGRAM,
        {"inputs": [v.name for v in graph.inputs], "outputs": [v.name for v in graph.outputs], "ops": ops},
    )


def build(source: Path, artifact: Path, *, soc: str) -> None:
    """Compile: refuse what the chip has no kernel for, stamp the SoC, and write the artifact whole or not at all.

    Raises:
        ToolchainError: an op has no kernel.
    """
    program = json.loads((source / PROGRAM).read_text(encoding="utf-8"))
    for op in program["ops"]:
        if op["op"] not in KERNELS:
            raise ToolchainError(
                f"no kernel for {op['op']}",
                where=f"{source.name}, node {op['name'] or op['outputs'][0]}",
                fix="`check` names such ops before anything is compiled",
            )
    with atomic_directory(artifact) as temporary:
        write_json(temporary / PROGRAM, {"format": FORMAT, "soc": soc, **program})
        shutil.copyfile(source / WEIGHTS, temporary / WEIGHTS)


def _plain(attribute: ir.Attr) -> Any:
    return list(attribute.value) if isinstance(attribute.value, tuple) else attribute.value


def _storable(array: NDArray[np.generic]) -> NDArray[np.generic]:
    """Sub-byte integers take a byte each: npz knows numpy's own types only."""
    if array.dtype.kind in "biuf":
        return array
    return array.astype(np.uint8 if array.dtype.name.startswith("u") else np.int8)
