"""Running a graph on this host's CPU with onnxruntime: the reference for numerics."""

import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Protocol, TypeAlias

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray

from pocketport.compress.graph import save_graph
from pocketport.errors import ToolchainError

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
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        levels = ort.GraphOptimizationLevel
        options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimize else levels.ORT_DISABLE_ALL
        with tempfile.TemporaryDirectory(prefix="pocketport-ort-") as folder:
            path = graph if isinstance(graph, Path) else Path(folder) / "graph.onnx"
            if isinstance(graph, ir.Model):
                save_graph(graph, path)
            try:
                self._session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
            except Exception as error:  # onnxruntime raises a family of pybind exceptions without a common base
                where = str(graph) if isinstance(graph, Path) else f"graph {graph.graph.name}"
                raise ToolchainError(
                    f"onnxruntime refuses it: {error}",
                    where=where,
                    fix="the op or attribute it names is not supported",
                ) from error
        self.inputs = {v.name: tuple(v.shape) for v in self._session.get_inputs()}
        self.outputs = [v.name for v in self._session.get_outputs()]

    def run(self, feeds: Arrays) -> dict[str, NDArray[np.generic]]:
        """Run once; all outputs."""
        return dict(zip(self.outputs, self._session.run(self.outputs, dict(feeds)), strict=True))

    def close(self) -> None:
        """Free the session's memory."""
        del self._session
