"""Run a compiled context on the x86 emulator of the HTP that the vendor's library contains.

Integers are computed as the architecture that the context was compiled for computes them. Time is the host's: no
figure of speed comes from here.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketport.errors import InputError, ToolchainError
from pocketport.targets.contract import Arrays, Artifact, Target
from pocketport.targets.qualcomm.qdq import Port
from pocketport.targets.qualcomm.session import open_session, provider_options
from pocketport.targets.qualcomm.target import find_soc


class HtpEmulator:
    """Executor of one ``qnn-context`` artifact: floats outside, the context's integers inside."""

    def __init__(self, artifact: Artifact, target: Target) -> None:
        self._where = str(artifact.path)
        wrapper = artifact.path / f"{artifact.path.stem}.onnx"
        try:
            ports = json.loads((artifact.path / "io.json").read_text(encoding="utf-8"))
        except (OSError, json.JSONDecodeError) as error:
            raise InputError(f"not a compiled component: {error}", where=self._where, fix="compile it again") from error
        self._ports = {name: Port(**port) for name, port in ports.items()}
        try:
            self._session: Any = open_session(Path(wrapper), provider_options(find_soc(target)), {})
        except Exception as error:  # onnxruntime raises a kind of its own for every status code
            raise ToolchainError(
                f"the context does not load: {error}", where=self._where, fix="compile it again"
            ) from error

    def run(self, feeds: Arrays) -> dict[str, NDArray[np.generic]]:
        """Run once; ToolchainError when the emulator fails."""
        named = {
            entry.name: self._inward(entry.name, feeds[entry.name], entry.type) for entry in self._session.get_inputs()
        }
        names = [entry.name for entry in self._session.get_outputs()]
        try:
            results = self._session.run(names, named)
        except Exception as error:
            raise ToolchainError(f"the emulator failed: {error}", where=self._where, fix="compile it again") from error
        return {name: self._outward(name, result) for name, result in zip(names, results, strict=True)}

    def close(self) -> None:
        """Free the emulator's memory."""
        self._session = None

    def _inward(self, name: str, value: NDArray[np.generic], kind: str) -> NDArray[np.generic]:
        if name in self._ports:
            port = self._ports[name]
            return port.encoding.quantize(np.asarray(value, np.float32)).astype(port.dtype)
        return value.astype(
            {"tensor(int64)": np.int64, "tensor(int32)": np.int32, "tensor(bool)": np.bool_}.get(kind, np.float32)
        )

    def _outward(self, name: str, value: NDArray[np.generic]) -> NDArray[np.generic]:
        if name in self._ports:
            return self._ports[name].encoding.dequantize(value)  # type: ignore[arg-type]
        return value.astype(np.int32) if np.issubdtype(value.dtype, np.integer) else value
