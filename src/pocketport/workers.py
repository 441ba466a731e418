"""Vendor code runs here: in a spawned process with a time and a memory limit.

A compiler that crashes, hangs or leaks costs its own process and gives a ToolchainError with the last lines of
its log. Spawn, never fork: several vendor libraries hang when they are used after a fork.
"""

import contextlib
import importlib
import multiprocessing
import operator
import os
import resource
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any

import psutil

from pocketport.errors import PocketportError, ToolchainError

POLL_SECONDS = 0.05
LOG_TAIL_LINES = 12
_STARTING = threading.Lock()


def processors() -> tuple[int, ...]:
    """The logical processors that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))


@dataclass(frozen=True)
class Limits:
    """What a worker may use: wall seconds per call, and resident bytes in all."""

    seconds: float = 600.0
    memory_bytes: int = 12 << 30


DEFAULT_LIMITS = Limits()


class Worker:
    """A spawned process that holds one object and answers calls to its methods.

    Args:
        factory: ``"package.module:callable"``, called in the worker with `arguments`; gives the object.
        arguments: picklable positional arguments of the factory.
        label: what the work is, for messages (``"qualcomm/sm8650 vision: compile"``).
        limits: see Limits.
    """

    def __init__(self, factory: str, *arguments: Any, label: str, limits: Limits = DEFAULT_LIMITS) -> None:
        self._label = label
        self._limits = limits
        handle, name = tempfile.mkstemp(prefix="pocketport-worker-", suffix=".log")
        os.close(handle)
        self._log = Path(name)
        context = multiprocessing.get_context("spawn")
        self._connection, child = context.Pipe()
        self._process = context.Process(target=_serve, args=(child, name, factory, arguments), daemon=True)
        with _main_unseen():
            self._process.start()
        child.close()
        self.peak_bytes = 0
        try:
            self._receive()
        except BaseException:
            self.close()
            raise

    def call(self, method: str, *arguments: Any) -> Any:
        """Call a method of the held object; its errors are raised here, a crash as ToolchainError."""
        try:
            self._connection.send((method, arguments))
        except (BrokenPipeError, OSError):
            raise self._failure("the worker process died before the call") from None
        return self._receive()

    def _receive(self) -> Any:
        deadline = time.monotonic() + self._limits.seconds
        while not self._connection.poll(POLL_SECONDS):
            self._watch_memory()
            if time.monotonic() > deadline:
                self._process.kill()
                raise self._failure(f"no answer within {self._limits.seconds:.0f} s; the process was ended")
            if not self._process.is_alive() and not self._connection.poll(0):
                raise self._failure(f"the process ended with exit code {self._process.exitcode}")
        try:
            ok, value = self._connection.recv()
        except (EOFError, OSError):
            self._process.join(5)
            raise self._failure(f"the process ended with exit code {self._process.exitcode}") from None
        self._watch_memory()
        if ok:
            return value
        if isinstance(value, PocketportError):
            raise value
        raise self._failure(str(value))

    def _watch_memory(self) -> None:
        with contextlib.suppress(psutil.Error):
            resident = psutil.Process(self._process.pid).memory_info().rss
            self.peak_bytes = max(self.peak_bytes, resident)
            if resident > self._limits.memory_bytes:
                self._process.kill()
                raise self._failure(f"it took over {self._limits.memory_bytes / 2**30:.1f} GiB; the process was ended")

    def _failure(self, why: str) -> ToolchainError:
        tail = (
            "\n".join(self._log.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:])
            if self._log.exists()
            else ""
        )
        return ToolchainError(
            f"{why}\n{tail}".rstrip(),
            where=self._label,
            fix="the vendor's last words are above; the other components go on",
        )

    def close(self) -> None:
        """End the process and remove its log."""
        with contextlib.suppress(OSError):
            self._connection.send(None)
        self._process.join(2)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._connection.close()
        self._log.unlink(missing_ok=True)

    def __enter__(self) -> "Worker":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@contextmanager
def _main_unseen() -> Iterator[None]:
    """Processes that start here do not import the parent's main module again, with all that it imports.

    That would be torch and every command: 3 seconds and 250 MB for each worker, which finds what it runs by name.
    """
    with _STARTING:
        main = sys.modules["__main__"]
        sys.modules["__main__"] = ModuleType("__main__")
        try:
            yield
        finally:
            sys.modules["__main__"] = main


def peak_rss() -> int:
    """The most memory this process ever had resident, bytes; maps of files count as far as they were paged in."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def call_in_worker(function: str, *arguments: Any, label: str, limits: Limits = DEFAULT_LIMITS) -> Any:
    """Call ``"package.module:function"`` once in a fresh worker and return its (picklable) result."""
    with Worker("pocketport.workers:_Function", function, label=label, limits=limits) as worker:
        return worker.call("call", *arguments)


class _Function:
    def __init__(self, path: str) -> None:
        self._function = _resolve(path)

    def call(self, *arguments: Any) -> Any:
        return self._function(*arguments)


def _resolve(path: str) -> Callable[..., Any]:
    module, _, name = path.partition(":")
    function: Callable[..., Any] = operator.attrgetter(name)(importlib.import_module(module))
    return function


def _serve(connection: Connection, log: str, factory: str, arguments: tuple[Any, ...]) -> None:
    """Body of the worker: everything that it or native code prints goes to the log."""
    stream = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(stream, 1)
    os.dup2(stream, 2)
    sys.stdout = sys.stderr = os.fdopen(stream, "w", buffering=1)
    try:
        held = _resolve(factory)(*arguments)
    except BaseException as error:
        connection.send((False, _portable(error)))
        os._exit(1)
    connection.send((True, None))
    while True:
        try:
            request = connection.recv()
        except EOFError:
            break
        if request is None:
            break
        method, values = request
        try:
            connection.send((True, getattr(held, method)(*values)))
        except BaseException as error:
            connection.send((False, _portable(error)))
    os._exit(0)  # some vendor runtimes abort in their exit handlers; the results are already out


def _portable(error: BaseException) -> PocketportError | str:
    if isinstance(error, PocketportError):
        return error
    traceback.print_exception(error)
    return f"{type(error).__name__}: {error}"
