"""A command run to its end, with what the kernel counted for it."""

import os
import time
from pathlib import Path

TAIL = 3000  # characters of a failed command's output that are shown


def run(command: list[str], log: Path) -> tuple[float, int]:
    """Seconds and maximum resident set of one command; its output goes into `log`.

    Raises:
        RuntimeError: it failed.
    """
    start = time.perf_counter()
    with log.open("wb") as stream:
        process = os.posix_spawn(
            command[0], command, os.environ,
            file_actions=[(os.POSIX_SPAWN_DUP2, stream.fileno(), 1), (os.POSIX_SPAWN_DUP2, stream.fileno(), 2)],
        )  # fmt: skip
        _, status, usage = os.wait4(process, 0)
    if status:
        raise RuntimeError(f"{' '.join(command)} failed:\n{log.read_text(errors='replace')[-TAIL:]}")
    return time.perf_counter() - start, usage.ru_maxrss * 1024
