"""Rounding up or down as a number between 0 and 1 that gradients move (AdaRound: Nagel et al. 2020, arXiv 2004.10568).

A weight is s · (⌊w/s⌋ + h(V)) with the rectified sigmoid h(V) = clip(1.2 · σ(V) − 0.1, 0, 1), equations 22 and 23 of the
paper; its regularizer Σ 1 − |2h(V) − 1|^β, equation 24, drives every h to one of its ends as β falls.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

STRETCH, BELOW = 1.2, 0.1
BETAS = (20.0, 2.0)
WARM_UP = 0.2  # of the steps, without the regularizer
LEARNING_RATE = 1e-2
KEPT = 0.6  # of the integers that a rounding starts from: what is nearer to them than to their neighbours
REGULARIZER = 10.0  # beside an error that is 1 for the nearest integers


class SoftRounding:
    """The integers of one weight in the making.

    Args:
        weight: float32, any shape.
        scale: of every weight, broadcast to that shape.
        zero_point: likewise, whole numbers in float32.
        bounds: least and greatest integer.
        integers: where it starts, between them and the weight itself; None: at the weight. They need not be those on
            either side of the weight: they and one neighbour are what there is to choose from then.
    """

    def __init__(
        self, weight: Tensor, scale: Tensor, zero_point: Tensor, bounds: tuple[int, int], integers: Tensor | None = None
    ) -> None:
        self._scale, self._zero, self._bounds = scale, zero_point, bounds
        steps = weight / scale
        self._down = steps.floor()
        if integers is not None:
            chosen = integers - zero_point
            self._down = torch.minimum(torch.maximum(self._down, chosen - 1), chosen)
            steps = KEPT * chosen + (1 - KEPT) * steps.clamp(self._down, self._down + 1)
        rest = (steps - self._down).add_(BELOW).div_(STRETCH)
        self.logits = torch.log(rest / (1 - rest)).requires_grad_()
        """V, which the optimizer moves."""

    def up(self) -> Tensor:
        """h(V): 1 where a weight is rounded up, 0 where down, between them where that is open."""
        return (self.logits.sigmoid() * STRETCH - BELOW).clamp(0.0, 1.0)

    def weight(self) -> Tensor:
        """The weight as it stands."""
        return self._dequantized(self._down + self.up())

    def regularizer(self, beta: float) -> Tensor:
        """Σ 1 − |2h(V) − 1|^β."""
        return (1 - (2 * self.up() - 1).abs().pow(beta)).sum()

    @torch.no_grad()
    def integers(self) -> Tensor:
        """The decision, float32 whole numbers."""
        return (self._down + (self.up() >= 0.5) + self._zero).clamp_(*self._bounds)

    @torch.no_grad()
    def decided(self) -> Tensor:
        """What `integers` stand for."""
        return (self.integers() - self._zero) * self._scale

    def _dequantized(self, steps: Tensor) -> Tensor:
        low, high = self._bounds
        return ((steps + self._zero).clamp(low, high) - self._zero) * self._scale


class Schedule:
    """Adam (Kingma & Ba 2015, arXiv 1412.6980) over roundings, with the regularizer's β falling along a cosine.

    Args:
        roundings: moved together.
        iterations: steps in all.
        others: further parameters, and their learning rate.
    """

    def __init__(
        self, roundings: Sequence[SoftRounding], iterations: int, others: tuple[Sequence[Tensor], float] = ((), 0.0)
    ) -> None:
        self._roundings, self._iterations, self._step = roundings, iterations, 0
        self._count = sum(r.logits.numel() for r in roundings)
        groups = [{"params": [r.logits for r in roundings], "lr": LEARNING_RATE}]
        if others[0]:
            groups.append({"params": list(others[0]), "lr": others[1]})
        self._optimizer = torch.optim.Adam(groups)

    def step(self) -> None:
        """Add the regularizer's gradient to that of the error, and move."""
        warm = WARM_UP * self._iterations
        if self._step >= warm:
            passed = (self._step - warm) / (self._iterations - warm)
            first, last = BETAS
            beta = last + 0.5 * (first - last) * (1 + float(torch.cos(torch.tensor(passed * torch.pi))))
            weight = REGULARIZER / self._count
            sum((weight * r.regularizer(beta) for r in self._roundings), torch.zeros(())).backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        self._optimizer.zero_grad()
        self._step += 1
