"""onnxruntime sessions of graphs that are in memory; weights that are in files are mapped where they lie."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir

from pocketport.errors import ToolchainError

SMALL_BYTES = 256  # such tensors are part of the protobuf
FOLDER_OF_WEIGHTS = "session.model_external_initializers_file_folder_path"


def open_session(
    graph: ir.Model | Path, outputs: Sequence[str] = (), *, threads: int = 1, optimize: bool = False
) -> Any:
    """A session on this host's CPU; `graph` is unchanged, and its weights' files may go once the session is open.

    Args:
        graph: the model, or the file that holds it.
        outputs: which tensors of a model it gives, those of the graph where none is named; what none of them needs is left out.
        threads: intra-op threads.
        optimize: let onnxruntime rewrite the graph.

    Raises:
        ToolchainError: onnxruntime refuses the graph.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    levels = ort.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimize else levels.ORT_DISABLE_ALL
    where = str(graph) if isinstance(graph, Path) else f"graph {graph.graph.name}"
    with tempfile.TemporaryDirectory(prefix="pocketport-session-") as temporary:
        model = graph if isinstance(graph, Path) else _serialized(graph, outputs, options, temporary)
        try:
            return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime raises a family of pybind exceptions without a common base
            raise ToolchainError(
                f"onnxruntime refuses it: {error}", where=where, fix="the op or attribute it names is not supported"
            ) from error


def _serialized(graph: ir.Model, outputs: Sequence[str], options: Any, temporary: str) -> bytes:
    """A graph without its weights; `options` know where they are."""
    folder = _folder_of_weights(graph)
    if outputs or folder is None:
        graph = graph.clone()
    if outputs:
        _cut(graph, outputs)
    if folder is None:
        folder = temporary
        ir.external_data.unload_from_model(graph, folder, "weights", size_threshold_bytes=SMALL_BYTES)
    options.add_session_config_entry(FOLDER_OF_WEIGHTS, folder)
    proto: bytes = ir.to_proto(graph).SerializeToString()
    return proto


def _cut(graph: ir.Model, outputs: Sequence[str]) -> None:
    """Let these tensors be the outputs, and take out the nodes that none of them needs."""
    values = {v.name: v for node in graph.graph for v in node.outputs}
    graph.graph.outputs[:] = [values[name] for name in outputs]
    for node in reversed(graph.graph):
        if not any(v.uses() or v.is_graph_output() for v in node.outputs):
            graph.graph.remove(node, safe=True)


def _folder_of_weights(graph: ir.Model) -> str | None:
    """The one that the files of all weights are in; None where there are several, or weights in memory."""
    tensors = [v.const_value for part in graph.graphs() for v in part.initializers.values()]
    kept = [t for t in tensors if isinstance(t, ir.ExternalTensor) or (t is not None and t.nbytes >= SMALL_BYTES)]
    folders = {t.base_dir if isinstance(t, ir.ExternalTensor) else None for t in kept}
    folder = folders.pop() if len(folders) == 1 else None
    return None if folder is None else str(Path(folder).resolve())
