"""Running a graph on this host's CPU with onnxruntime: the reference for numerics."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Protocol, TypeAlias

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from pocketport.calibration.sessions import open_session

Arrays: TypeAlias = Mapping[str, NDArray[np.generic]]
Samples: TypeAlias = Callable[[], Iterable[tuple[str, Arrays]]]
"""Makes (component, inputs by name) pairs anew, as calibration reads them."""


class Executor(Protocol):
    """Whatever runs one component: feeds and results by the graph's input and output names."""

    def run(self, feeds: Arrays) -> dict[str, NDArray[np.generic]]:
        """Run once."""
        ...


class OrtExecutor:
    """A graph in onnxruntime's CPU provider.

    Args:
        graph: the model, or the file that holds it.
        threads: intra-op threads.
        optimize: let onnxruntime rewrite the graph. The default leaves it as it is: its rewrites of quantized
            graphs change the numerics.

    Raises:
        ToolchainError: onnxruntime refuses the graph.
    """

    def __init__(self, graph: ir.Model | Path, *, threads: int = 1, optimize: bool = False) -> None:
        self._session = open_session(graph, threads=threads, optimize=optimize)
        self.inputs = {v.name: tuple(v.shape) for v in self._session.get_inputs()}
        self.outputs = [v.name for v in self._session.get_outputs()]

    def run(self, feeds: Arrays) -> dict[str, NDArray[np.generic]]:
        """Run once; all outputs."""
        return dict(zip(self.outputs, self._session.run(self.outputs, dict(feeds)), strict=True))

    def close(self) -> None:
        """Free the session's memory."""
        del self._session
