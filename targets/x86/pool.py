"""Processes for candidates, used again: starting one takes longer than opening a small model."""

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor

from pocketport.errors import ToolchainError
from pocketport.workers import Limits, Worker

LIMITS = Limits(seconds=600, memory_bytes=16 << 30)
STARTED_AT_ONCE, MOST_WAITING = 3, 8


class Pool:
    """Workers, each with a `pocketport.targets.x86.trial.Bench`; the next ones start while the first are at work."""

    def __init__(self) -> None:
        self._idle: list[Worker] = []
        self._coming: deque[Future[Worker]] = deque()
        self._starter = ThreadPoolExecutor(STARTED_AT_ONCE)

    def fill(self, count: int) -> None:
        """Let workers start until `count` are idle or on their way, at most MOST_WAITING."""
        self.fill_fresh(min(count, MOST_WAITING) - len(self._idle))

    def fill_fresh(self, count: int) -> None:
        """Let workers start until `count` are on their way."""
        self._coming.extend(self._starter.submit(bench) for _ in range(count - len(self._coming)))

    def take(self) -> Worker:
        """An idle worker, the next one that has started, or a new one."""
        if self._idle:
            return self._idle.pop()
        return self._coming.popleft().result() if self._coming else bench()

    def fresh(self) -> Worker:
        """A worker that never held a candidate."""
        return self._coming.popleft().result() if self._coming else bench()

    def give(self, worker: Worker) -> None:
        """Give a worker back; its candidate is closed. One that died is ended."""
        try:
            worker.call("close")
        except ToolchainError:
            worker.close()
        else:
            self._idle.append(worker)

    def close(self) -> None:
        """End all workers that nobody has."""
        self._starter.shutdown(cancel_futures=True)
        started = [job.result() for job in self._coming if not job.cancelled() and job.exception() is None]
        for worker in (*self._idle, *started):
            worker.close()
        self._idle.clear()
        self._coming.clear()


def bench() -> Worker:
    """A fresh process for one candidate."""
    return Worker("pocketport.targets.x86.trial:Bench", label="x86: one candidate", limits=LIMITS)
