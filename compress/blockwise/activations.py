"""Activations of all calibration samples: in memory as far as a budget goes, in a file beyond it."""

import os
from collections import defaultdict
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

SPILL_NAME = ".spill"  # in a directory of parts, which takes files that begin with a dot away when it is whole


class Activations:
    """Tensors by (name, sample). What the budget does not hold lies in a file that is read and written, never mapped.

    Args:
        path: the file; it goes when this closes.
        budget: bytes kept in memory.
    """

    def __init__(self, path: Path, budget: int) -> None:
        self._path, self._budget = path, budget
        self._held: defaultdict[int, dict[str, Tensor]] = defaultdict(dict)  # by sample, then by name
        self._places: defaultdict[int, dict[str, tuple[int, Tensor]]] = defaultdict(dict)
        self._free: dict[int, list[int]] = {}
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        self._end = self._bytes = 0
        self.spilled = 0
        """The most bytes that ever lay in the file."""

    def put(self, name: str, sample: int, value: Tensor) -> None:
        """Keep a float tensor; one of the same name and sample is replaced."""
        self.drop(name, sample)
        if self._bytes + value.nbytes <= self._budget:
            self._bytes += value.nbytes
            self._held[sample][name] = value.clone()
            return
        value = value.contiguous()
        holes = self._free.get(value.nbytes, [])
        offset = holes.pop() if holes else self._end
        self._end = max(self._end, offset + value.nbytes)
        self.spilled = max(self.spilled, self._end)
        self._places[sample][name] = (offset, torch.empty_like(value, device="meta"))
        _write(self._file, value, offset)

    def get(self, name: str, sample: int, device: torch.device) -> Tensor:
        """The tensor, on `device`."""
        if name in self._held[sample]:
            return self._held[sample][name].to(device)
        offset, like = self._places[sample][name]
        value = torch.empty(like.shape, dtype=like.dtype)
        view = _bytes(value)
        done = 0
        while done < len(view):
            count = os.preadv(self._file, [view[done:]], offset + done)
            if not count:
                raise OSError(f"{self._path} ends before {name}, sample {sample}")
            done += count
        return value.to(device)

    def drop(self, name: str, sample: int) -> None:
        """Forget it, if it is there."""
        held = self._held[sample].pop(name, None)
        if held is not None:
            self._bytes -= held.nbytes
        place = self._places[sample].pop(name, None)
        if place is not None:
            self._free.setdefault(place[1].nbytes, []).append(place[0])

    def names(self, sample: int) -> set[str]:
        """What is kept of a sample."""
        return {*self._held[sample], *self._places[sample]}

    def __enter__(self) -> "Activations":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._file)
        self._path.unlink(missing_ok=True)


def _bytes(value: Tensor) -> memoryview:
    """The memory of a contiguous tensor."""
    array: Any = value.reshape(-1).view(torch.uint8).numpy()
    return memoryview(array)


def _write(file: int, value: Tensor, offset: int) -> None:
    view = _bytes(value.cpu())
    done = 0
    while done < len(view):
        done += os.pwrite(file, view[done:], offset + done)
