"""A command run to its end, with what the kernel counted for it."""

import json
import subprocess
import sys
from pathlib import Path

TAIL = 3000  # characters of a failed command's output that are shown
# The kernel counts the memory of whoever starts a process into the process's own maximum: a small interpreter must start it.
STARTER = """
import json, os, sys, time
start = time.perf_counter()
process = os.posix_spawn(
    sys.argv[2], sys.argv[2:], os.environ,
    file_actions=[(os.POSIX_SPAWN_OPEN, 1, sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), (os.POSIX_SPAWN_DUP2, 1, 2)],
)
_, status, usage = os.wait4(process, 0)
print(json.dumps([status, time.perf_counter() - start, usage.ru_maxrss * 1024]))
"""


def run(command: list[str], log: Path) -> tuple[float, int]:
    """Seconds and maximum resident set of one command; its output goes into `log`.

    Raises:
        RuntimeError: it failed.
    """
    starter = [sys.executable, "-S", "-E", "-c", STARTER, str(log), *command]
    status, seconds, peak = json.loads(subprocess.run(starter, check=True, capture_output=True).stdout)
    if status:
        raise RuntimeError(f"{' '.join(command)} failed:\n{log.read_text(errors='replace')[-TAIL:]}")
    return float(seconds), int(peak)
