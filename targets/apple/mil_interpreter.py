"""Runs ``.mlpackage`` files without macOS: the saved program, read back and interpreted in torch.

Every value is rounded to float16 where the program says float16; sums inside one op (products, norms, softmax)
accumulate in float32, as Apple's GPU and Neural Engine do. That makes it an emulation: the device's own order of
operations and its fusions are not modelled.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pocketport.errors import ToolchainError
from pocketport.targets.apple.coreml_program import FUNCTION, load_program
from pocketport.targets.apple.mil_ops import OPERATIONS, Operation
from pocketport.targets.contract import Arrays


@dataclass(frozen=True)
class Reference:
    """An argument that is computed at run time: the value's name."""

    name: str


@dataclass(frozen=True)
class Step:
    """One operation: what to call, with constants and References, and how the result is called."""

    function: Operation
    arguments: Mapping[str, Any]
    result: str


class MILExecutor:
    """One package, loaded.

    Args:
        path: an ``.mlpackage`` directory.
        inputs: the pivot's input names → the package's.
        outputs: the pivot's output names → the package's.
    """

    def __init__(self, path: Path, inputs: Mapping[str, str], outputs: Mapping[str, str]) -> None:
        self._where = str(path)
        self._inputs, self._outputs = inputs, outputs
        function = load_program(path).functions[FUNCTION]
        self._shapes = {name: tuple(int(d) for d in value.shape) for name, value in function.inputs.items()}
        self._constants: dict[str, torch.Tensor] = {}
        self._steps: list[Step] = []
        for operation in function.operations:
            if operation.op_type != "const":
                self._add(operation)

    def _add(self, operation: Any) -> None:
        if operation.op_type not in OPERATIONS:
            where = f"{self._where}, operation {operation.name}"
            raise ToolchainError(
                f"the interpreter has no {operation.op_type}", where=where, fix="run the package on a Mac"
            )
        step = Step(
            OPERATIONS[operation.op_type],
            {name: self._argument(value) for name, value in operation.inputs.items() if value is not None},
            operation.outputs[0].name,
        )
        if operation.op_type.startswith("constexpr_"):
            self._constants[step.result] = _rounded(step.function(step.arguments))
        else:
            self._steps.append(step)

    def _argument(self, value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return [self._argument(v) for v in value]
        if value.name in self._constants:
            return self._constants[value.name]
        if value.op is None or value.op.op_type != "const":
            return Reference(value.name)
        constant = value.val
        if isinstance(constant, np.ndarray) and constant.dtype == np.float16:
            return torch.from_numpy(constant.astype(np.float32))
        return float(constant) if isinstance(constant, np.floating) else constant

    def run(self, feeds: Arrays) -> dict[str, NDArray[np.generic]]:
        """Run once; see ``targets.contract.Executor``."""
        values: dict[str, torch.Tensor] = {}
        for ours, theirs in self._inputs.items():
            shape = self._shapes[theirs]
            if ours not in feeds or feeds[ours].shape != shape:
                given = feeds[ours].shape if ours in feeds else "nothing"
                raise ToolchainError(
                    f"input {ours!r} wants {shape}, not {given}", where=self._where, fix="check the feeds"
                )
            array = feeds[ours]
            kind = np.float32 if array.dtype.kind == "f" else np.int64
            values[theirs] = _rounded(torch.from_numpy(np.ascontiguousarray(array, dtype=kind)))

        def resolve(argument: Any) -> Any:
            if isinstance(argument, Reference):
                return values[argument.name]
            return [resolve(a) for a in argument] if isinstance(argument, list) else argument

        with torch.no_grad():
            for step in self._steps:
                values[step.result] = _rounded(step.function({k: resolve(a) for k, a in step.arguments.items()}))
        results = {ours: values[theirs].numpy() for ours, theirs in self._outputs.items()}
        return {k: a.astype(np.float32 if a.dtype.kind == "f" else np.int32) for k, a in results.items()}

    def close(self) -> None:
        """Forget the weights."""
        self._steps.clear()
        self._constants.clear()


def _rounded(values: torch.Tensor) -> torch.Tensor:
    return values.half().float() if values.is_floating_point() else values
