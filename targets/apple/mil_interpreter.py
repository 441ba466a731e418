"""Runs ``.mlpackage`` files without macOS: the saved program, read back and interpreted in torch.

Every value is rounded to float16 where the program says float16; sums inside one op (products, norms, softmax)
accumulate in float32, as Apple's GPU and Neural Engine do. That makes it an emulation: the device's own order of
operations and its fusions are not modelled.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pocketport.errors import ToolchainError
from pocketport.targets.apple.coreml_program import FUNCTION, load_program
from pocketport.targets.apple.mil_ops import OPERATIONS, Arguments
from pocketport.targets.contract import Arrays


class MILExecutor:
    """One package, loaded.

    Args:
        path: an ``.mlpackage`` directory.
        names: the pivot's input and output names → the package's.
    """

    def __init__(self, path: Path, names: Mapping[str, str]) -> None:
        self._where = str(path)
        self._names = dict(names)
        function = load_program(path).functions[FUNCTION]
        self._inputs = {name: tuple(int(d) for d in value.shape) for name, value in function.inputs.items()}
        self._outputs = [value.name for value in function.outputs]
        self._constants: dict[str, torch.Tensor] = {}
        self._steps = [self._step(operation) for operation in function.operations if operation.op_type != "const"]
        self._steps = [step for step in self._steps if step is not None]

    def _step(self, operation: Any) -> tuple[Any, Arguments, list[str], bool] | None:
        """What to call with which arguments, and what its results are called; None if it was a constant."""
        if operation.op_type not in OPERATIONS:
            where = f"{self._where}, operation {operation.name}"
            raise ToolchainError(f"the interpreter has no {operation.op_type}", where=where, fix="run the package on a Mac")
        arguments = {name: self._argument(value) for name, value in operation.inputs.items() if value is not None}
        results = [value.name for value in operation.outputs]
        half = "fp16" in operation.outputs[0].dtype.__name__ if hasattr(operation.outputs[0].dtype, "__name__") else False
        del half
        if operation.op_type.startswith("constexpr_"):
            self._constants[results[0]] = _rounded(OPERATIONS[operation.op_type](arguments))
            return None
        return OPERATIONS[operation.op_type], arguments, results, True
