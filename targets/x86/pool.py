"""Processes for candidates, used again: starting one takes longer than opening a small model."""

from concurrent.futures import ThreadPoolExecutor

from pocketport.errors import ToolchainError
from pocketport.workers import Limits, Worker

LIMITS = Limits(seconds=600, memory_bytes=16 << 30)
STARTED_AT_ONCE, MOST_WAITING = 4, 8


class Pool:
    """Idle workers, each with a `pocketport.targets.x86.trial.Bench`."""

    def __init__(self) -> None:
        self._idle: list[Worker] = []

    def fill(self, count: int) -> None:
        """Have at least `count` idle workers, at most MOST_WAITING."""
        self._idle += benches(min(count, MOST_WAITING) - len(self._idle))

    def take(self) -> Worker:
        """An idle worker, or a new one."""
        return self._idle.pop() if self._idle else bench()

    def give(self, worker: Worker) -> None:
        """Give a worker back; its candidate is closed. One that died is ended."""
        try:
            worker.call("close")
        except ToolchainError:
            worker.close()
        else:
            self._idle.append(worker)

    def close(self) -> None:
        """End all idle workers."""
        for worker in self._idle:
            worker.close()
        self._idle.clear()


def bench() -> Worker:
    """A fresh process for one candidate."""
    return Worker("pocketport.targets.x86.trial:Bench", label="x86: one candidate", limits=LIMITS)


def benches(count: int) -> list[Worker]:
    """Several, started at once: each mostly waits for its imports."""
    with ThreadPoolExecutor(STARTED_AT_ONCE) as starting:
        return [job.result() for job in [starting.submit(bench) for _ in range(count)]]
