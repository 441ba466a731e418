"""Runs ``.aimodel`` files in Core AI's runtime on Linux."""

import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pocketport.errors import ToolchainError
from pocketport.targets.apple.coreai_host import prepare
from pocketport.targets.apple.coreai_runtime import OpenProgram
from pocketport.targets.contract import Arrays


class CoreAIExecutor:
    """One loaded program; see ``targets.contract.Executor`` and, for what is done to it before, ``coreai_host``.

    Args:
        path: an ``.aimodel`` directory.
    """

    def __init__(self, path: Path) -> None:
        self._where = str(path)
        with tempfile.TemporaryDirectory(prefix="pocketport-coreai-") as folder:
            self._program = OpenProgram(prepare(path, Path(folder)))

    def run(self, feeds: Arrays) -> dict[str, NDArray[np.generic]]:
        """Run once."""
        arrays = {}
        for name, shape in self._program.inputs.items():
            if name not in feeds or feeds[name].shape != shape:
                given = feeds[name].shape if name in feeds else "nothing"
                raise ToolchainError(
                    f"input {name!r} wants {shape}, not {given}", where=self._where, fix="check the feeds"
                )
            arrays[name] = feeds[name].astype(np.float16 if feeds[name].dtype.kind == "f" else np.int32)
        results = self._program.run(arrays)
        return {name: a.astype(np.float32 if a.dtype.kind == "f" else np.int32) for name, a in results.items()}

    def close(self) -> None:
        """Free the runtime's memory."""
        self._program.close()
