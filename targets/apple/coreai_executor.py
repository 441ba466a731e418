"""Runs ``.aimodel`` files in Core AI's runtime on Linux."""

import asyncio
import tempfile
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from pocketport.errors import ToolchainError
from pocketport.targets.apple.coreai_program import FUNCTION
from pocketport.targets.contract import Arrays

T = TypeVar("T")
MATMUL = "coreai.decomposable.broadcasting_batch_matmul"


class CoreAIExecutor:
    """One loaded program. The file's own program runs, except that its float16 matrix products accumulate in float32.

    The Linux runtime's float16 product accumulates in float16 and takes 36 ns a multiplication; Apple's GPU and
    Neural Engine accumulate wider. So a float16 product is run as cast, float32 product, cast.

    Args:
        path: an ``.aimodel`` directory.
        outputs: the outputs to return, all float ones as float32.
    """

    def __init__(self, path: Path) -> None:
        from coreai.authoring import AIModelAsset

        if not AIModelAsset.is_valid(path):
            raise ToolchainError("not an .aimodel", where=str(path), fix="compile the component again")
        self._loop = asyncio.new_event_loop()
        self._stack = AsyncExitStack()
        self._folder = tempfile.TemporaryDirectory(prefix="pocketport-coreai-", ignore_cleanup_errors=True)
        program = AIModelAsset.load(path).program
        accumulate_wide(program)
        asset = program.save_asset(Path(self._folder.name) / "wide.aimodel")
        model = self._wait(self._stack.enter_async_context(asset.executable()))
        self._function = model.load_function(FUNCTION)
        self._where = str(path)

    def _wait(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return self._loop.run_until_complete(coroutine)

    def run(self, feeds: Arrays) -> dict[str, NDArray[np.generic]]:
        """Run once; see ``targets.contract.Executor``."""
        from coreai.runtime import NDArray as Buffer

        description = self._function.desc
        inputs = {}
        for name in description.input_names:
            shape = tuple(description.input_descriptor(name).shape)
            if name not in feeds or feeds[name].shape != shape:
                given = feeds[name].shape if name in feeds else "nothing"
                raise ToolchainError(
                    f"input {name!r} wants {shape}, not {given}", where=self._where, fix="check the feeds"
                )
            kind = np.float16 if feeds[name].dtype.kind == "f" else np.int32
            inputs[name] = Buffer(np.ascontiguousarray(feeds[name].astype(kind)))
        results = self._wait(self._function(inputs))
        arrays = {name: np.array(value.numpy()) for name, value in results.items()}
        return {name: a.astype(np.float32 if a.dtype.kind == "f" else np.int32) for name, a in arrays.items()}

    def close(self) -> None:
        """Free the runtime's memory and the temporary program."""
        self._wait(self._stack.aclose())
        self._loop.close()
        self._folder.cleanup()


def accumulate_wide(program: Any) -> int:
    """Rewrite `program`'s float16 matrix products to cast, float32 product, cast; how many there were."""
    from coreai._compiler.dialects import coreai
    from coreai._compiler.ir import F16Type, InsertionPoint, Location

    graph = program._get_graph(FUNCTION)
    block = graph.regions[0].blocks[0]
    products = [op for op in block.operations if op.operation.name == MATMUL]
    count = 0
    for product in products:
        result = product.operation.results[0]
        with graph.context, Location.unknown(), InsertionPoint(product):
            if not F16Type.isinstance(result.type.element_type):
                continue
            wide = [coreai.cast(operand, np.float32) for operand in product.operation.operands]
            narrow = coreai.cast(coreai.broadcasting_batch_matmul(*wide), np.float16)
        result.replace_all_uses_with(narrow)
        product.operation.erase()
        count += 1
    return count
