"""What a checkpoint format is, and what the plan says of each tensor that goes into one."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pocketport.compress.bundle import ModelBundle
from pocketport.compress.quantized_weights import QuantizedWeights
from pocketport.compress.sources.source import Source

Progress = Callable[[int, int], None]
"""Called with (bytes or tensors done, their total)."""


@dataclass(frozen=True)
class SchemeChoice:
    """What a tensor becomes, and why.

    Attributes:
        scheme: in the grammar of `pocketport.compress.schemes` (``w4b128fp16``), a ggml type (``q4_k``), or the float
            dtype in which it stays (``f32 f16 bf16``; ``source``: as it lies in the checkpoint).
        why: the rule or the reason for a fall-back.
        symmetric: zero points in the middle of the integers.
    """

    scheme: str
    why: str
    symmetric: bool = True


@dataclass(frozen=True)
class WeightPlan:
    """What one tensor of the checkpoint becomes.

    Attributes:
        tensor: its published name.
        shape: of the tensor.
        component: the first component whose graph uses it; "" for none.
        scheme: see `SchemeChoice`.
        algorithm: ``rtn mse gptq`` and so on; ``ggml`` for ggml's block formats; ``stored`` where the source is already
            in these integers; ``cast`` for floats.
        symmetric: see `SchemeChoice`.
        options: of the algorithm.
        activation: the graph tensor that meets it in `component`, whose statistics weigh its columns; "" for none.
        why: the rule, or the reason for a fall-back.
        bytes_before: in the checkpoint.
        bytes_after: in the format, scales and zero points included.
    """

    tensor: str
    shape: tuple[int, ...]
    component: str
    scheme: str
    algorithm: str
    symmetric: bool
    options: Mapping[str, float]
    activation: str
    why: str
    bytes_before: int
    bytes_after: int

    @property
    def quantized(self) -> bool:
        """Whether it becomes integers."""
        return self.algorithm != "cast"


class Format(Protocol):
    """One checkpoint format.

    Attributes:
        name: what ``--format`` calls it.
        variants: what may follow the name after a colon (``gguf:q4_k_m``); the first is the default. Empty: none.
        default_scheme: scheme of linear weights where the recipe names none.
    """

    name: str
    variants: tuple[str, ...]
    default_scheme: str

    def check(self, source: Source, bundle: ModelBundle, variant: str) -> None:
        """See to it that this model can be written.

        Raises:
            UsageError: there is no such variant, or an optional package is missing.
            InputError: the format has no place for this family or for something in it.
        """
        ...

    def choose(
        self, tensor: str, shape: tuple[int, ...], component: str, role: str, variant: str, wanted: str | None
    ) -> SchemeChoice:
        """What a tensor becomes.

        Args:
            tensor: published name.
            shape: of the tensor.
            component: the first component whose graph uses it (``vision``, ``prefill`` …); "" for none.
            role: ``linear`` (a [N, K] matrix of a linear layer), ``table`` (an embedding, which is Gathered), ``head``
                (the vocabulary projection), or ``other``.
            variant: one of `variants`.
            wanted: the recipe's scheme, or None.

        Raises:
            UsageError: the format can't take `wanted`.
        """
        ...

    def write(
        self,
        source: Source,
        bundle: ModelBundle,
        weights: QuantizedWeights,
        directory: Path,
        variant: str,
        progress: Progress,
    ) -> list[Path]:
        """Write the checkpoint into `directory` (which exists and is empty), one tensor at a time.

        Tensors that `weights` lacks are taken from `source`.

        Returns:
            The files written.
        """
        ...
