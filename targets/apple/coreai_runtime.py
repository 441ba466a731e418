"""A program open in Core AI's runtime: arrays in, arrays out."""

import asyncio
from collections.abc import Coroutine, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from pocketport.errors import ToolchainError
from pocketport.targets.apple.coreai_program import FUNCTION

T = TypeVar("T")


class OpenProgram:
    """An ``.aimodel`` compiled and loaded by the runtime.

    Attributes:
        inputs: the shape of each input.

    Raises:
        ToolchainError: `path` is not an ``.aimodel``.
    """

    def __init__(self, path: Path) -> None:
        from coreai.authoring import AIModelAsset

        if not AIModelAsset.is_valid(path):
            raise ToolchainError("not an .aimodel", where=str(path), fix="compile the component again")
        self._loop = asyncio.new_event_loop()
        self._stack = AsyncExitStack()
        model = self._wait(self._stack.enter_async_context(AIModelAsset.load(path).executable()))
        self._function = model.load_function(FUNCTION)
        description = self._function.desc
        self.inputs = {name: tuple(description.input_descriptor(name).shape) for name in description.input_names}

    def _wait(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return self._loop.run_until_complete(coroutine)

    def run(self, feeds: Mapping[str, NDArray[np.generic]]) -> dict[str, NDArray[np.generic]]:
        """Run once. The arrays' shapes and types must be the program's: the runtime aborts the process otherwise."""
        from coreai.runtime import NDArray as Buffer

        results = self._wait(self._function({name: Buffer(np.ascontiguousarray(a)) for name, a in feeds.items()}))
        return {name: np.array(value.numpy()) for name, value in results.items()}

    def close(self) -> None:
        """Free the runtime's memory."""
        self._wait(self._stack.aclose())
        self._loop.close()
