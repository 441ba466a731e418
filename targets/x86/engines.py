"""The two engines: how an artifact is opened and run, with the settings under which it computes what the pivot says."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from pocketport.errors import ToolchainError
from pocketport.targets.contract import Arrays, Executor
from pocketport.targets.x86.settings import (
    ONNX,
    OPENVINO_IR,
    OnnxRuntimeSettings,
    OpenVinoSettings,
    Settings,
    own_defaults,
)
from pocketport.workers import processors

MODEL_FILE = {ONNX: "model.onnx", OPENVINO_IR: "model.xml"}
REFERENCE = OnnxRuntimeSettings(optimization="disabled")
"""The graph op by op, as it is."""
PROPERTIES = {
    "threads": "INFERENCE_NUM_THREADS",
    "pinned": "ENABLE_CPU_PINNING",
    "mode": "EXECUTION_MODE_HINT",
    "precision": "INFERENCE_PRECISION_HINT",
    "hyper_threading": "ENABLE_HYPER_THREADING",
    "partitioner": "TBB_PARTITIONER",
    "denormals_as_zero": "CPU_DENORMALS_OPTIMIZATION",
}
LEVELS = {
    "all": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
    "extended": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "basic": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "disabled": onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
}
Shapes: TypeAlias = Mapping[str, Sequence[int]]


def open_engine(kind: str, path: Path, settings: Settings | None = None, *, shapes: Shapes | None = None) -> Executor:
    """Open an artifact directory of either kind, or an ONNX file.

    Args:
        kind: ``onnx`` or ``openvino-ir``.
        path: the artifact.
        settings: of its engine; None: `own_defaults`.
        shapes: of the inputs whose dimensions the file leaves open.

    Raises:
        ToolchainError: the engine refuses it.
    """
    file = path / MODEL_FILE[kind] if path.is_dir() else path
    chosen = settings or own_defaults(kind)
    try:
        return (
            OnnxRuntimeExecutor(file, chosen)
            if isinstance(chosen, OnnxRuntimeSettings)
            else OpenVinoExecutor(file, chosen, shapes)
        )
    except Exception as error:  # both runtimes raise their own kinds, RuntimeError among them
        raise ToolchainError(
            f"{type(error).__name__}: {error}", where=f"{kind} artifact {path}", fix="compile again for this machine"
        ) from error


def session_options(settings: OnnxRuntimeSettings) -> onnxruntime.SessionOptions:
    """onnxruntime's own form of the settings."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = LEVELS[settings.optimization]
    options.enable_cpu_mem_arena = settings.arena
    options.enable_mem_pattern = settings.memory_pattern
    if settings.parallel:
        options.execution_mode = onnxruntime.ExecutionMode.ORT_PARALLEL
    if settings.threads is not None:
        options.intra_op_num_threads = settings.threads
        if settings.pinned and settings.threads > 1:
            others = processors()[1 : settings.threads]  # onnxruntime counts them from 1
            options.add_session_config_entry("session.intra_op_thread_affinities", ";".join(str(p + 1) for p in others))
    if not settings.spinning:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if settings.denormals_as_zero:
        options.add_session_config_entry("session.set_denormal_as_zero", "1")
    if not settings.prepacking:
        options.add_session_config_entry("session.disable_prepacking", "1")
    return options


def onnx_session(
    path: Path, settings: OnnxRuntimeSettings, *, optimized: Path | None = None, profile: Path | None = None
) -> onnxruntime.InferenceSession:
    """A CPU session.

    Args:
        path: the ONNX file.
        settings: see there.
        optimized: where onnxruntime writes the graph that it runs, if anywhere.
        profile: how the names begin of the files that it writes every op's time to, if any.
    """
    options = session_options(settings)
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    return onnxruntime.InferenceSession(
        path, options, providers=["CPUExecutionProvider"],
        disabled_optimizers=[] if settings.matmul_add_fusion else ["MatMulAddFusion"],
    )  # fmt: skip


class OnnxRuntimeExecutor:
    """onnxruntime's CPU provider."""

    def __init__(self, path: Path, settings: OnnxRuntimeSettings, *, profile: Path | None = None) -> None:
        self.session = onnx_session(path, settings, profile=profile)
        self._outputs = [output.name for output in self.session.get_outputs()]

    def run(self, feeds: Arrays) -> dict[str, NDArray[np.generic]]:
        """Run once."""
        return dict(zip(self._outputs, self.session.run(self._outputs, dict(feeds)), strict=True))

    def close(self) -> None:
        """Free the session."""
        del self.session


class OpenVinoExecutor:
    """OpenVINO's CPU plugin."""

    def __init__(
        self, path: Path, settings: OpenVinoSettings, shapes: Shapes | None = None, *, profile: bool = False
    ) -> None:
        self._compiled = compile_model(path, settings, shapes, profile=profile)
        self.request = self._compiled.create_infer_request()
        self._outputs = [(output.get_any_name(), output) for output in self._compiled.outputs]

    def run(self, feeds: Arrays) -> dict[str, NDArray[np.generic]]:
        """Run once. Results are copied out: OpenVINO's own buffers are overwritten by the next run."""
        self.request.infer(dict(feeds), share_inputs=True)
        return {name: np.array(self.request.get_tensor(output).data) for name, output in self._outputs}

    def close(self) -> None:
        """Free the compiled model."""
        del self.request, self._compiled, self._outputs


def compile_model(
    path: Path, settings: OpenVinoSettings, shapes: Shapes | None = None, *, profile: bool = False
) -> Any:
    """OpenVINO's compiled model of an IR (or ONNX) file; `profile` makes it count every op's time."""
    import openvino

    chosen = settings.model_dump(exclude_defaults=True)
    properties = {PROPERTIES[name]: value for name, value in chosen.items() if name in PROPERTIES}
    core = openvino.Core()
    core.set_property({"ENABLE_MMAP": settings.mmap})  # read_model looks here
    model = core.read_model(path)
    if shapes:
        model.reshape({name: list(shape) for name, shape in shapes.items()})
    return core.compile_model(model, "CPU", {**properties, "PERF_COUNT": True} if profile else properties)
