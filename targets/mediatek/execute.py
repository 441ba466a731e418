"""Running a .tflite in LiteRT's interpreter on the CPU, with the reference integer kernels' results."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketport.errors import InputError
from pocketport.targets.contract import Arrays
from pocketport.targets.mediatek.emit import SIGNATURE


class LiteRTExecutor:
    """One loaded .tflite; float32 and int32 in and out, by the pivot's names.

    XNNPACK is left out: it repacks weights and computes some float ops otherwise than the built-in kernels.
    """

    def __init__(self, path: Path) -> None:
        from ai_edge_litert.interpreter import Interpreter, OpResolverType

        try:
            self._interpreter: Any = Interpreter(
                model_path=str(path),
                num_threads=1,
                experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
            )
            self._runner: Any = self._interpreter.get_signature_runner(SIGNATURE)
        except (RuntimeError, ValueError) as error:
            raise InputError(
                f"LiteRT can't open it: {error}", where=str(path), fix="compile the component again"
            ) from error
        self._inputs: dict[str, Any] = self._runner.get_input_details()

    def run(self, feeds: Arrays) -> dict[str, NDArray[np.generic]]:
        """Run once. Raises InputError when an input is missing or its shape differs."""
        prepared = {}
        for name, detail in self._inputs.items():
            if name not in feeds:
                raise InputError(f"no value for input {name!r}", where="LiteRT", fix=f"give {', '.join(self._inputs)}")
            array = np.asarray(feeds[name])
            if array.shape != tuple(detail["shape"]):
                shape = tuple(int(d) for d in detail["shape"])
                raise InputError(
                    f"it has shape {array.shape}, the model takes {shape}",
                    where=f"input {name}",
                    fix="feed that shape",
                )
            prepared[name] = np.ascontiguousarray(array, dtype=detail["dtype"])
        results: dict[str, NDArray[np.generic]] = self._runner(**prepared)
        return results

    def close(self) -> None:
        """Free the interpreter."""
        self._runner = self._interpreter = None
