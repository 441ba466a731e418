"""Every shipped recipe has figures, the page shows them, and a recipe known to be bad is refused with its figure."""

from pathlib import Path

import pytest

from pocketport.compress import evidence
from pocketport.compress.evidence import Evidence, check_evidence, evidence_table, known_evidence, recipes_table
from pocketport.compress.recipe import shipped_recipes
from pocketport.errors import UsageError

PAGE = Path(__file__).resolve().parents[2] / "docs" / "recipes.md"
BAD = Evidence(
    recipe="rtn", destination="qualcomm/sm8650", model="reference", metric="exact_match", score=0.41, float_score=0.94,
    samples=32, sqnr_db=9.0, bytes=1, how="onnxruntime",
)  # fmt: skip


def test_every_shipped_recipe_was_measured_somewhere() -> None:
    measured = {e.recipe for e in known_evidence() if e.score is not None}
    missing = [name for name in shipped_recipes() if name not in measured]
    assert missing == [], f"run `python benchmarks/recipes.py --recipe {' '.join(missing)} --docs docs/recipes.md`"
    assert {e.recipe for e in known_evidence()} <= set(shipped_recipes())


def test_the_page_has_the_tables() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert recipes_table() in page and evidence_table() in page


def test_a_bad_recipe_is_refused_with_its_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    good = BAD.model_copy(update={"recipe": "gptq", "score": 0.93})
    monkeypatch.setattr(evidence, "known_evidence", lambda: (BAD, good))
    with pytest.raises(UsageError) as caught:
        check_evidence("rtn", "qualcomm/sm8750@2.51")  # another chip of the vendor has the same legality
    assert "from 0.940 to 0.410 (32 samples, qualcomm/sm8650" in caught.value.why
    check_evidence("gptq", "qualcomm/sm8650")
    check_evidence("rtn", "x86/generic")
    check_evidence("rtn", "gguf:q4_0")
    check_evidence("mine/rtn.yaml", "qualcomm/sm8650")  # the user's own copy


def test_a_recipe_that_a_target_does_not_take_says_why() -> None:
    refused = Evidence(
        recipe="importance", destination="x86/generic", model="reference", refused="it has no such algorithm"
    )
    assert refused.verdict == "refused" and refused.lost == 0.0
    assert BAD.verdict == "bad" and BAD.lost == pytest.approx(0.53)
