"""Scales and zero points of grouped weights, and rounding to them, in torch: for matrices that fill a cache many times.

Extremes, or a search for the least weighted squared error; scales are rounded to float16 first where that is what files
will hold. The integers of a symmetric grid go one further down than up: the search gives a scale the sign that lets the
greatest weight of its group lie there, as ggml's Q4_0 does.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pocketport.compress.algorithms.affine_grid import Grid, joined
from pocketport.compress.blockwise.refine import refined
from pocketport.compress.quantized_weights import QuantizedWeight
from pocketport.compress.schemes import Granularity, Scheme
from pocketport.compress.torch_device import row_runs
from pocketport.errors import InputError

RATIOS = tuple(1 - 0.07 * step for step in range(8))  # of clipping that are tried; each is then fitted
OPPOSITE_RATIOS = RATIOS[::2]  # tried with the other sign too
CHUNK_ELEMENTS = 1 << 18  # what the caches of two cores hold
LEAST_IMPORTANCE = 1e-4  # of the mean: inputs that were never seen still must not be thrown away


@dataclass(frozen=True)
class Form:
    """How a matrix [N, K] is written.

    Attributes:
        bits: of one weight.
        group: columns that share a scale.
        symmetric: the zero point is 2^(bits−1).
        half: scales are float16 numbers.
    """

    bits: int
    group: int
    symmetric: bool
    half: bool

    @classmethod
    def of(cls, scheme: str, symmetric: bool, columns: int) -> "Form":
        """The form that a scheme asks for in a matrix of K columns."""
        parsed = Scheme.parse(scheme)
        group = parsed.block if parsed.granularity is Granularity.BLOCK else columns
        return cls(int(parsed.weight_bits or 0), group, symmetric, parsed.float_bits == 16)

    @property
    def highest(self) -> int:
        """The greatest integer; the least is 0."""
        return int(2**self.bits - 1)

    def searched(self, weight: Tensor, importance: Tensor | None = None) -> Grid:
        """See `searched_grid`."""
        return searched_grid(weight, self, importance)

    def refined(
        self, weight: Tensor, hessian: Tensor, integers: Tensor, grid: Grid, sweeps: int
    ) -> tuple[Tensor, Grid]:
        """See `pocketport.compress.blockwise.refine.refined`."""
        return refined(weight, hessian, integers, grid, sweeps, half=self.half)

    def stored(self, integers: Tensor, grid: Grid) -> QuantizedWeight:
        """Integers [N, K] with their grid, as they are stored."""
        return QuantizedWeight(
            self.bits, self.group, self.symmetric,
            integers.cpu().numpy(), grid.scale.cpu().numpy(), grid.zero.to(torch.uint8).cpu().numpy(),
        )  # fmt: skip


def extreme_grid(weight: Tensor, form: Form) -> Grid:
    """The grid of each group's extremes: nothing is clipped (but for the last half of float16's rounding)."""
    return joined([_grid(*_extremes(part, form), form) for part in _chunks(weight)])


def searched_grid(weight: Tensor, form: Form, importance: Tensor | None = None) -> Grid:
    """The grid of least Σ importance · (w − ŵ)² a group, over clipping ratios from 1 down to 0.51.

    The scale of each ratio is replaced by the one that fits the integers it leads to by least squares.

    Args:
        weight: float32 [N, K].
        form: see `Form`.
        importance: float32 [K] ≥ 0, the mean square of each input; None: all the same.
    """
    heed = None
    if importance is not None:
        mean = float(importance.mean()) or 1.0
        heed = (importance / mean).clamp_min(LEAST_IMPORTANCE).reshape(-1, form.group)
    return joined([_searched(part, form, heed) for part in _chunks(weight)])


def round_to(weight: Tensor, grid: Grid) -> Tensor:
    """Nearest integers, uint8 [N, K]."""
    integers = torch.empty(weight.shape, dtype=torch.uint8, device=weight.device)
    rows = _rows(weight)
    for start in range(0, len(weight), rows):
        part = slice(start, start + rows)
        integers[part] = grid.rows(part).nearest(weight[part])
    return integers


def _rows(weight: Tensor) -> int:
    return max(1, CHUNK_ELEMENTS // weight.shape[1])


def _chunks(weight: Tensor) -> list[Tensor]:
    return row_runs(weight, _rows(weight))


def _extremes(weight: Tensor, form: Form) -> tuple[Tensor, Tensor]:
    """Least and greatest of each group, both [n, G], zero among them."""
    grouped = weight.reshape(len(weight), -1, form.group)
    return grouped.amin(-1).clamp_max_(0), grouped.amax(-1).clamp_min_(0)


def _grid(low: Tensor, high: Tensor, form: Form) -> Grid:
    middle = 2 ** (form.bits - 1)
    scale = torch.maximum(-low, high) / (form.highest - middle) if form.symmetric else (high - low) / form.highest
    return _with_zero(scale, low, form)


def _candidates(low: Tensor, high: Tensor, form: Form) -> Iterator[Grid]:
    """Grids of clipped extremes; symmetric ones have the farther extreme at their least integer, or at their greatest."""
    if not form.symmetric:
        yield from (_grid(low * ratio, high * ratio, form) for ratio in RATIOS)
        return
    scale = torch.where(high > -low, high, low) / -(2 ** (form.bits - 1))
    for ratio in (*RATIOS, *(-ratio for ratio in OPPOSITE_RATIOS)):
        yield _with_zero(scale * ratio, low, form)


def _with_zero(scale: Tensor, low: Tensor, form: Form) -> Grid:
    if form.half:
        scale = scale.half().float()
        if bool(torch.isinf(scale).any()):
            raise InputError(
                "its weights are too large for scales in float16",
                where="quantizing weights",
                fix="keep the tensor float",
            )
    scale = torch.where(scale == 0, 1.0, scale)
    middle = torch.full_like(scale, 2 ** (form.bits - 1))
    zero = middle if form.symmetric else (-low / scale).round().clamp_(0, form.highest)
    return Grid(scale, zero, 0, form.highest)


def _searched(weight: Tensor, form: Form, heed: Tensor | None) -> Grid:
    low, high = _extremes(weight, form)
    grouped = weight.reshape(len(weight), -1, form.group)
    work = torch.empty_like(grouped)
    chosen = _grid(low, high, form)
    _steps(grouped, chosen, form, work)
    best = _error(grouped, chosen.scale, heed, work)
    for grid in _candidates(low, high, form):
        _steps(grouped, grid, form, work)
        scale = _fitted(grouped, grid.scale, form, heed, work)
        error = _error(grouped, scale, heed, work)
        better = error < best
        best = torch.where(better, error, best)
        chosen = replace(grid, scale=scale).where(better, chosen)
    return chosen


def _steps(grouped: Tensor, grid: Grid, form: Form, work: Tensor) -> None:
    """Nearest integers less the zero point, into `work`."""
    torch.mul(grouped, 1 / grid.scale[..., None], out=work)
    zero = grid.zero[..., None]
    work.round_().add_(zero).clamp_(0, form.highest).sub_(zero)


def _fitted(grouped: Tensor, scale: Tensor, form: Form, heed: Tensor | None, steps: Tensor) -> Tensor:
    """The scales that fit these steps best, of the same signs, [n, G]; as they were where none does."""
    weighted = steps if heed is None else steps * heed
    fitted = torch.linalg.vecdot(weighted, grouped) / torch.linalg.vecdot(weighted, steps)
    if form.half:
        fitted = fitted.half().float()
    return torch.where(torch.isfinite(fitted) & (fitted * scale > 0), fitted, scale)


def _error(grouped: Tensor, scale: Tensor, heed: Tensor | None, steps: Tensor) -> Tensor:
    """Σ importance · (w − ŵ)² of each group, [n, G]; `steps` is overwritten."""
    difference = steps.mul_(scale[..., None]).sub_(grouped)
    error: Tensor = torch.linalg.vecdot(difference, difference if heed is None else difference * heed)
    return error
