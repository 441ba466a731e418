"""Reading a .tflite back: its operators, and what they write."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pocketport.errors import InputError

UNCOUNTED = frozenset({"QUANTIZE", "DEQUANTIZE"})  # changes of precision, not ops of the model


@dataclass(frozen=True)
class Operator:
    """One operator of the main subgraph: the schema's name for it and the name of its first output."""

    code: str
    output: str

    @property
    def counts(self) -> bool:
        """Whether it is an op of the model: not a change of precision, not a call of NPU code (CUSTOM)."""
        return self.code not in UNCOUNTED and self.code != "CUSTOM"

    def __str__(self) -> str:
        return f"{self.code} → {self.output}"


def read_operators(path: Path) -> Sequence[Operator]:
    """The operators of a .tflite in order; InputError if it isn't one."""
    from ai_edge_litert import schema_py_generated as schema

    data = path.read_bytes()
    if data[4:8] != b"TFL3":
        raise InputError("not a .tflite file", where=str(path), fix="compile the component again")
    model: Any = schema.Model.GetRootAs(data, 0)
    names = {code: name for name, code in vars(schema.BuiltinOperator).items() if not name.startswith("_")}
    codes = []
    for i in range(model.OperatorCodesLength()):
        record = model.OperatorCodes(i)
        codes.append(names[max(record.BuiltinCode(), record.DeprecatedBuiltinCode())])
    graph = model.Subgraphs(0)
    operators = []
    for i in range(graph.OperatorsLength()):
        operator = graph.Operators(i)
        output = graph.Tensors(operator.Outputs(0)).Name().decode()
        operators.append(Operator(codes[operator.OpcodeIndex()], output))
    return operators
