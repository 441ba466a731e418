"""x86 targets: the instruction sets that a host must have."""

import os
import platform
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from pocketport.errors import ToolchainError
from pocketport.targets.checks import unknown_soc
from pocketport.targets.contract import Target
from pocketport.workers import processors

VENDOR = "x86"
CPU_INFO = Path("/proc/cpuinfo")

# Flags as the Linux kernel spells them; the engines pick their kernels by the same bits at run time.
INSTRUCTION_SETS: Mapping[str, frozenset[str]] = {
    "generic": frozenset(),
    "avx2": frozenset({"avx2", "fma"}),
    "avx-vnni": frozenset({"avx2", "fma", "avx_vnni"}),
    "avx512": frozenset({"avx512f", "avx512bw", "avx512vl", "avx512dq"}),
    "avx512-vnni": frozenset({"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni"}),
    "amx": frozenset({"avx512f", "amx_tile", "amx_int8"}),
}


def required_flags(target: Target) -> frozenset[str]:
    """The CPU flags that `target` asks of a host; UsageError for a name that is none of INSTRUCTION_SETS."""
    try:
        return INSTRUCTION_SETS[target.soc]
    except KeyError:
        raise unknown_soc(target, INSTRUCTION_SETS) from None


def has_vnni(target: Target) -> bool:
    """Whether every host of `target` has the instructions that sum 8-bit products in 32 bits."""
    return bool(required_flags(target) & {"avx_vnni", "avx512_vnni", "amx_int8"})


def lacking(target: Target) -> tuple[str, ...]:
    """The flags of `target` that this host doesn't have, sorted; empty where it can run."""
    return tuple(sorted(required_flags(target) - _host()[1]))


def require_host(target: Target) -> None:
    """ToolchainError when this host can't execute for `target`."""
    absent = lacking(target)
    if absent:
        raise ToolchainError(
            f"this host ({cpu_model()}) has no {', '.join(absent)}",
            where=f"target {target}",
            fix="execute on a machine that has them, or take a target that this host can run, e.g. x86/generic",
        )


def cpu_model() -> str:
    """The processor's name as the operating system tells it."""
    return _host()[0]


def threads() -> int:
    """Threads that the engines use: the processors this process may run on, capped by ``OMP_NUM_THREADS``."""
    available = len(processors())
    cap = os.environ.get("OMP_NUM_THREADS", "")
    return min(available, int(cap)) if cap.isdigit() and int(cap) > 0 else available


@cache
def _host() -> tuple[str, frozenset[str]]:
    """Model name and CPU flags. Where the system has no ``/proc/cpuinfo`` no flag is known to be there."""
    if not CPU_INFO.is_file():
        return platform.processor() or platform.machine(), frozenset()
    fields: dict[str, str] = {}
    for line in CPU_INFO.read_text(encoding="utf-8", errors="replace").splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    return fields.get("model name", platform.machine()), frozenset(fields.get("flags", "").split())
