"""What is summed over the rows of an activation that weights meet: the Hessian and, beside a float chain, its drift."""

from collections.abc import Sequence

import torch
from torch import Tensor

from pocketport.compress.blockwise.drift import Drift
from pocketport.compress.blockwise.gptq import Hessian

ROWS = 2048  # that are taken in at once


class Sums:
    """The Hessian of an activation and its drift, of all samples or but for those held out.

    Args:
        names: of the activation and of the residuals.
        columns: of the activation.
        exact: whether there is a float chain.
        device: where the sums lie.
        split: whether some samples are held out: `held` has the sums of those, until they are merged.
    """

    def __init__(
        self, names: Sequence[str], columns: int, exact: bool, device: torch.device, *, split: bool = False
    ) -> None:
        self.hessian = Hessian(columns, device)
        self.drift = Drift(columns, device) if exact else None
        self.held = Sums(names, columns, exact, device) if split else None
        self._names = names
        self._waiting: list[Sequence[Tensor]] = []

    def add(self, values: Sequence[Tensor]) -> None:
        """Take in rows of each name, of the quantized chain and then of the float one, now or with those to come."""
        self._waiting.append(values)
        if sum(len(rows[0]) for rows in self._waiting) >= ROWS:
            self.finish()

    def finish(self) -> None:
        """Take in what waits."""
        if self.held is not None:
            self.held.finish()
        if not self._waiting:
            return
        values = [torch.cat(part) for part in zip(*self._waiting, strict=True)]
        self._waiting.clear()
        self.hessian.add(values[0])
        if self.drift is not None:
            exact = values[len(self._names) :]
            self.drift.add(values[0], exact[0])
            for name, residual, wanted in zip(self._names[1:], values[1 : len(self._names)], exact[1:], strict=True):
                self.drift.add_residual(name, values[0], residual, wanted)

    def merge_held(self) -> None:
        """Take over the sums of what was held out."""
        if self.held is not None:
            self.hessian.merge(self.held.hessian)
            if self.drift is not None and self.held.drift is not None:
                self.drift.merge(self.held.drift)
        self.held = None
