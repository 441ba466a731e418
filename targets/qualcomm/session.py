"""onnxruntime sessions on the QNN execution provider: its registration, its options, and its log."""

import contextlib
import functools
import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pocketport.targets.qualcomm.target import Soc

PACKAGE = "onnxruntime-qnn"
PROVIDER = "QNNExecutionProvider"
NO_FALLBACK = {"session.disable_cpu_ep_fallback": "1"}


def is_installed() -> bool:
    """Whether onnxruntime-qnn is there."""
    return importlib.util.find_spec("onnxruntime_qnn") is not None


@functools.cache
def _devices() -> Sequence[Any]:
    import onnxruntime
    import onnxruntime_qnn

    onnxruntime.register_execution_provider_library(PROVIDER, onnxruntime_qnn.get_library_path())
    return [device for device in onnxruntime.get_ep_devices() if device.ep_name == PROVIDER]


def provider_options(soc: Soc) -> dict[str, str]:
    """What every session for `soc` says. The number names the chip: an architecture alone would mean 4 MB of VTCM."""
    import onnxruntime_qnn

    return {
        "backend_path": onnxruntime_qnn.get_qnn_htp_path(),
        "soc_model": str(soc.model),
        "vtcm_mb": str(soc.vtcm_mb),
        "htp_graph_finalization_optimization_mode": "3",
    }


def open_session(path: Path, options: Mapping[str, str], entries: Mapping[str, str], severity: int = 3) -> Any:
    """An InferenceSession on the HTP only. `severity` 0 lets the compiler's own log through to `captured_log`."""
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = severity
    settings.intra_op_num_threads = settings.inter_op_num_threads = 1
    for key, value in {**NO_FALLBACK, **entries}.items():
        settings.add_session_config_entry(key, value)
    settings.add_provider_for_devices(_devices(), dict(options))
    session = onnxruntime.InferenceSession(str(path), settings)
    session.disable_fallback()  # or `run` would quietly start again on the CPU when the accelerator fails
    return session


@contextlib.contextmanager
def captured_log(*needles: str) -> Iterator[list[str]]:
    """Collect the log messages that contain one of `needles` while the block runs."""
    import onnxruntime

    kept: list[str] = []

    def listen(_severity: int, _category: str, _id: str, _location: str, message: str) -> None:
        if any(needle in message for needle in needles):
            kept.append(message.strip())

    onnxruntime.set_default_logger_callback(listen, 0)
    try:
        yield kept
    finally:
        onnxruntime.set_default_logger_callback(None)
        onnxruntime.set_default_logger_severity(2)
