"""MediaTek's LiteRT compiler plugin: compiling where the NeuroPilot SDK is installed, the lint elsewhere."""

import importlib
import importlib.util
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from pocketport.diagnostics import Diagnostic, Severity
from pocketport.errors import ToolchainError
from pocketport.targets.contract import Offload
from pocketport.targets.mediatek.model_file import read_operators
from pocketport.targets.mediatek.target import Soc

LITERT_PACKAGE = "ai_edge_litert"
SDK_PACKAGE = "ai_edge_litert_sdk_mediatek"
ADAPTER = "libneuron_adapter.so"
TIMEOUT_SECONDS = 900
LINT_SOURCE = "MediaTek plugin with a stand-in adapter: an upper bound"
AOT_SOURCE = "MediaTek compiler"


LITERT_MISSING = Diagnostic(
    "mediatek.no-litert",
    Severity.ERROR,
    "ai-edge-litert",
    "LiteRT is not installed",
    "pip install 'pocketport[mediatek]'",
)
SDK_MISSING = Diagnostic(
    "mediatek.no-sdk",
    Severity.NOTE,
    "NeuroPilot SDK",
    "it is not installed: the result is a portable .tflite, compiled on device",
    "pip install ai-edge-litert-sdk-mediatek, which downloads the SDK from MediaTek, to compile on this host",
)
COMPILER_MISSING = Diagnostic(
    "mediatek.no-c-compiler",
    Severity.NOTE,
    "cc",
    "no C compiler: MediaTek's plugin can't be asked which ops it takes",
    "install gcc or clang",
)


def has_litert() -> bool:
    """Whether ai-edge-litert is installed."""
    return importlib.util.find_spec(LITERT_PACKAGE) is not None


def sdk_libraries(soc: Soc) -> Path | None:
    """The NeuroPilot SDK's host libraries for `soc`, None where the SDK is not installed."""
    if importlib.util.find_spec(SDK_PACKAGE) is None:
        return None
    found = Path(importlib.import_module(SDK_PACKAGE).path_to_sdk_libs(soc.neuropilot))
    return found if (found / ADAPTER).is_file() else None


def c_compiler() -> str | None:
    """A C compiler on this host."""
    return next((path for name in ("cc", "gcc", "clang") if (path := shutil.which(name))), None)


def compile_ahead(model: Path, out: Path, soc: Soc, libraries: Path) -> Offload:
    """Compile `model` for `soc` with the SDK; `out` is a .tflite that carries the NPU's binary.

    Raises:
        ToolchainError: MediaTek's compiler refused, with its last words.
    """
    _apply(model, out, soc, libraries, ())
    return _count(model, out, AOT_SOURCE)


def lint(model: Path, work: Path, soc: Soc) -> tuple[Offload | None, tuple[Diagnostic, ...]]:
    """Which ops of `model` the plugin takes, found by running it beside an adapter that compiles nothing.

    An upper bound: MediaTek's compiler, which isn't here, may still send ops back to the CPU.
    """
    compiler = c_compiler()
    if compiler is None:
        return None, (COMPILER_MISSING,)
    folder = work / "stand_in"
    folder.mkdir(parents=True, exist_ok=True)
    source = Path(__file__).with_name("stand_in_adapter.c")
    built = subprocess.run(
        [compiler, "-shared", "-fPIC", "-o", str(folder / ADAPTER), str(source)], capture_output=True, text=True, check=False
    )  # fmt: skip
    if built.returncode:
        raise ToolchainError(
            f"the stand-in adapter does not compile: {built.stderr[-400:]}",
            where=compiler,
            fix="check the C compiler",
        )
    partitioned = work / f"{model.stem}.lint.tflite"
    _apply(model, partitioned, soc, folder, ("--mediatek_use_get_supported_operations=false",))
    return _count(model, partitioned, LINT_SOURCE), ()


def _apply(model: Path, out: Path, soc: Soc, libraries: Path, flags: Sequence[str]) -> None:
    package = Path(str(importlib.util.find_spec(LITERT_PACKAGE).origin)).parent  # type: ignore[union-attr]
    where = f"MediaTek plugin, {soc.name}, {model.name}"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.unlink(missing_ok=True)
    command = [
        str(package / "tools" / "apply_plugin_main"), "--cmd=apply", f"--model={model}", f"--o={out}",
        "--soc_manufacturer=MediaTek", f"--soc_model={soc.name}",
        f"--libs={package / 'vendors' / 'mediatek' / 'compiler'}", *flags,
    ]  # fmt: skip
    if soc.neuropilot == "v9":
        command.append("--mediatek_sdk_version_type=version9")
    with tempfile.TemporaryDirectory(dir=out.parent) as scratch:
        environment = os.environ | {
            "LD_LIBRARY_PATH": f"{libraries}{os.pathsep}{package}",
            "MTKNN_ADAPTER_DLA_DIR": scratch,
        }
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, env=environment, cwd=scratch, timeout=TIMEOUT_SECONDS, check=False
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            why = f"no answer within {TIMEOUT_SECONDS} s"
            raise ToolchainError(why, where=where, fix="compile a smaller component") from None
    if done.returncode or not out.is_file() or out.stat().st_size == 0:  # its exit code is 0 on some failures
        words = [line for line in (done.stdout + done.stderr).splitlines() if "ERROR" in line]
        why = "MediaTek's plugin refused the model: " + "\n".join(words[-8:] or ["it said nothing"])
        raise ToolchainError(why, where=where, fix="the plugin's reason is above")


def _count(model: Path, applied: Path, source: str) -> Offload:
    """Ops before and after: what is left outside the NPU's calls runs on the CPU."""
    total = sum(operator.counts for operator in read_operators(model))
    left = [operator for operator in read_operators(applied) if operator.counts]
    return Offload(total - len(left), total, source, tuple(str(operator) for operator in left))
