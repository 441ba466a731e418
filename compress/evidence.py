"""What the shipped recipes do to a model that everyone has: measured, kept beside them, and read when planning.

``recipes/evidence.json`` is written by ``python benchmarks/recipes.py``. A recipe that is known to ruin a target's numbers
is refused by name; a copy of its file under another name is the user's own, and is not.
"""

from functools import cache
from importlib import resources
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pocketport.compress.recipe import load_recipe, shipped_recipes
from pocketport.errors import InputError, UsageError

EVIDENCE_FILE = "evidence.json"
MOST_LOST = 0.1  # of a score in [0, 1]: beyond that a recipe is refused


class Evidence(BaseModel):
    """One recipe on one destination.

    Attributes:
        recipe: a shipped recipe's name.
        destination: ``vendor/soc``, or a checkpoint format as ``--format`` names it.
        model: that was quantized.
        metric: what `score` counts, in [0, 1].
        score, float_score: of the quantized and the float model on the same samples.
        samples: how many.
        sqnr_db: of the component that keeps least, at its worst output.
        bytes: of all weights as planned.
        how: what executed it.
        refused: why the destination does not take the recipe; the figures are absent then.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    recipe: str
    destination: str
    model: str
    metric: str = ""
    score: Annotated[float, Field(ge=0, le=1)] | None = None
    float_score: Annotated[float, Field(ge=0, le=1)] | None = None
    samples: int = 0
    sqnr_db: float | None = None
    bytes: int = 0
    how: str = ""
    refused: str = ""

    @property
    def lost(self) -> float:
        """What the score loses."""
        return 0.0 if self.score is None or self.float_score is None else self.float_score - self.score

    @property
    def verdict(self) -> Literal["good", "bad", "refused"]:
        """Whether one should use it there."""
        return "refused" if self.refused else "bad" if self.lost > MOST_LOST else "good"


class EvidenceFile(BaseModel):
    """``evidence.json``."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    schema_name: Literal["pocketport.evidence/1"] = Field(default="pocketport.evidence/1", alias="schema")
    measured: tuple[Evidence, ...] = ()


@cache
def known_evidence() -> tuple[Evidence, ...]:
    """Everything that was measured; InputError when the file is damaged."""
    file = resources.files("pocketport.compress.recipes") / EVIDENCE_FILE
    try:
        return EvidenceFile.model_validate_json(file.read_text(encoding="utf-8")).measured
    except (OSError, ValidationError) as error:
        raise InputError(
            f"not the recipes' evidence: {error}", where=EVIDENCE_FILE, fix="run `python benchmarks/recipes.py`"
        ) from error


def check_evidence(recipe: str, destination: str) -> None:
    """Refuse a shipped recipe that is known to be bad for a target's vendor or for a format.

    Args:
        recipe: as it was asked for: a name or a path.
        destination: ``vendor/soc[@sdk]`` or ``format[:variant]``.

    Raises:
        UsageError: with the figure.
    """
    if recipe not in shipped_recipes():
        return
    kind = _kind(destination)
    bad = [e for e in known_evidence() if e.recipe == recipe and _kind(e.destination) == kind and e.verdict == "bad"]
    if bad:
        worst = max(bad, key=lambda e: e.lost)
        raise UsageError(
            f"it is known to be bad there: {worst.metric.replace('_', ' ')} of the model {worst.model!r} falls from"
            f" {worst.float_score:.3f} to {worst.score:.3f} ({worst.samples} samples, {worst.destination}, {worst.how})",
            where=f"recipe {recipe} for {destination}",
            fix="choose another recipe, or use a copy of its file under a name of your own",
        )  # fmt: skip


def _kind(destination: str) -> str:
    """The vendor of a target; a format by its whole name."""
    return destination.partition("/")[0] if "/" in destination else destination


def recipes_table() -> str:
    """The shipped recipes and what they are for, as a table in Markdown."""
    rows = (f"| `{name}` | {load_recipe(name).description} |" for name in shipped_recipes())
    return "\n".join(("| recipe | is |", "|---|---|", *rows)) + "\n"


def evidence_table() -> str:
    """All that was measured as a table in Markdown, recipe by recipe."""
    lines = ["| recipe | for | score: float → here | least SQNR | weights | executed by |", "|---|---|---|---|---|---|"]
    for e in sorted(known_evidence(), key=lambda e: (e.recipe, "/" not in e.destination, e.destination)):
        if e.refused:
            lines.append(f"| `{e.recipe}` | {e.destination} | not taken: {e.refused} | | | |")
            continue
        mark = " **refused**" if e.verdict == "bad" else ""
        score = f"{e.float_score:.3f} → {e.score:.3f} (n = {e.samples}){mark}"
        lines.append(
            f"| `{e.recipe}` | {e.destination} | {score} | {e.sqnr_db:.1f} dB | {e.bytes / 1e6:.2f} MB | {e.how} |"
        )
    return "\n".join(lines) + "\n"
