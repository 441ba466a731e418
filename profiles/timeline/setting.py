"""What is asked of a model, and how it is set up on the device: the two things that a timeline follows from."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

from pocketport.profiles.timeline.description import ImagePlan, Part

Unit: TypeAlias = Literal["cpu", "npu"]
CONTEXT = 4096  # tokens that llama.cpp's cache is made for in the paper's own instructions
FLOAT_BITS = 16  # of a cache that holds no integers
QUESTION_TOKENS, ANSWER_TOKENS = 32, 128


@dataclass(frozen=True)
class Scenario:
    """One request.

    Attributes:
        image: what its image becomes; None: text alone.
        prompt_tokens: of text, the chat template among them.
        answer_tokens: of the answer; at least 1.
    """

    image: ImagePlan | None = None
    prompt_tokens: int = QUESTION_TOKENS
    answer_tokens: int = ANSWER_TOKENS

    @property
    def views(self) -> int:
        """Pictures that are encoded."""
        return self.image.views if self.image else 0

    @property
    def tokens(self) -> int:
        """Of the whole prompt."""
        return self.prompt_tokens + (self.image.tokens if self.image else 0)


def _schemes() -> dict[Part, str]:
    return {"vision": "fp16", "connector": "fp16", "language": "q4_k_m"}


def _units() -> dict[Part, Unit]:
    return {"vision": "cpu", "connector": "cpu", "language": "cpu"}


@dataclass(frozen=True)
class Setting:
    """How a model is set up.

    Attributes:
        schemes: of weights, by part: in the grammar of `Scheme`, or one of llama.cpp's mixtures.
        units: what runs each part.
        configuration: of the engine on the processor, a name of `configurations`.
        sequential: the vision tower is released before the language model is loaded (arXiv 2408.01800, section 5.3).
        context: tokens that the key-value cache has room for; more if the request needs more.
        cache_bits: of an element of the cache.
        shared_weights: prefill and decode are one context binary on the NPU, and share their weights.
    """

    schemes: Mapping[Part, str] = field(default_factory=_schemes)
    units: Mapping[Part, Unit] = field(default_factory=_units)
    configuration: str = "tuned"
    sequential: bool = True
    context: int = CONTEXT
    cache_bits: int = FLOAT_BITS
    shared_weights: bool = True

    def on(self, unit: Unit, *parts: Part) -> "Setting":
        """The same with these parts on `unit`."""
        return replace(self, units={**self.units, **dict.fromkeys(parts, unit)})

    def encoded(self, scheme: str, *parts: Part) -> "Setting":
        """The same with the weights of these parts in `scheme`."""
        return replace(self, schemes={**self.schemes, **dict.fromkeys(parts, scheme)})
