"""The two engines: how an artifact is opened and run, with the settings under which it computes what the pivot says."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from pocketport.errors import ToolchainError
from pocketport.targets.contract import Arrays, Executor
from pocketport.targets.x86.target import threads

ONNX, OPENVINO_IR = "onnx", "openvino-ir"
MODEL_FILE = {ONNX: "model.onnx", OPENVINO_IR: "model.xml"}


def open_engine(kind: str, path: Path, *, optimize: bool = True) -> Executor:
    """Open an artifact directory of either kind; `optimize` false runs the ONNX graph op by op, as the reference."""
    file = path / MODEL_FILE[kind] if path.is_dir() else path
    try:
        return OnnxRuntimeExecutor(file, optimize=optimize) if kind == ONNX else OpenVinoExecutor(file)
    except Exception as error:  # both runtimes raise their own kinds, RuntimeError among them
        raise ToolchainError(
            f"{type(error).__name__}: {error}", where=f"{kind} artifact {path}", fix="compile again for this machine"
        ) from error


def onnx_session(path: Path, *, optimize: bool = True, optimized: Path | None = None) -> onnxruntime.InferenceSession:
    """A CPU session; `optimized` is where onnxruntime writes the graph that it runs, if anywhere.

    Of its optimizations one is off: MatMul + Add → Gemm puts a Reshape between an integer product and its
    DequantizeLinear, and the product is then computed in float.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads()
    options.log_severity_level = 3
    level = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimize else level.ORT_DISABLE_ALL
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    return onnxruntime.InferenceSession(
        path, options, providers=["CPUExecutionProvider"], disabled_optimizers=["MatMulAddFusion"]
    )


class OnnxRuntimeExecutor:
    """onnxruntime's CPU provider."""

    def __init__(self, path: Path, *, optimize: bool = True) -> None:
        self._session = onnx_session(path, optimize=optimize)
        self._outputs = [output.name for output in self._session.get_outputs()]

    def run(self, feeds: Arrays) -> dict[str, NDArray[np.generic]]:
        """Run once."""
        return dict(zip(self._outputs, self._session.run(self._outputs, dict(feeds)), strict=True))

    def close(self) -> None:
        """Free the session."""
        del self._session


class OpenVinoExecutor:
    """OpenVINO's CPU plugin in accuracy mode.

    By default the plugin computes in bfloat16 where the processor has it and quantizes activations of compressed
    layers on the fly: on a float ViT that left nothing of the result. ACCURACY keeps float32 and integer layers exact.
    """

    def __init__(self, path: Path) -> None:
        self._compiled = compile_model(path)
        self._request = self._compiled.create_infer_request()
        self._outputs = [(output.get_any_name(), output) for output in self._compiled.outputs]

    def run(self, feeds: Arrays) -> dict[str, NDArray[np.generic]]:
        """Run once. Results are copied out: OpenVINO's own buffers are overwritten by the next run."""
        self._request.infer(dict(feeds), share_inputs=True)
        return {name: np.array(self._request.get_tensor(output).data) for name, output in self._outputs}

    def close(self) -> None:
        """Free the compiled model."""
        del self._request, self._compiled, self._outputs


def compile_model(path: Path) -> Any:
    """OpenVINO's compiled model of an IR (or ONNX) file."""
    import openvino

    properties = {
        "PERFORMANCE_HINT": "LATENCY",
        "EXECUTION_MODE_HINT": "ACCURACY",
        "INFERENCE_NUM_THREADS": threads(),
        "ENABLE_CPU_PINNING": False,  # pinned threads wait behind whatever else runs on their core: 33 ms instead of 2
    }
    return openvino.Core().compile_model(path, "CPU", properties)
