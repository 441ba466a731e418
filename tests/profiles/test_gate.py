"""Requests, budgets and verdicts."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocketport.errors import InputError, UsageError
from pocketport.profiles.budget import FIGURES, default_budget, load_budget, parse_budget
from pocketport.profiles.gate import Status, gate
from pocketport.profiles.measurement import Measurement, Provenance, ProvenanceKind
from pocketport.profiles.story import story
from pocketport.profiles.units import format_quantity, parse_quantity

MEASURED = Provenance(ProvenanceKind.MEASURED, "here")
LANGUAGE = ("embed", "prefill", "decode")
PREDICTED = Provenance(ProvenanceKind.PREDICTED, "roofline")


def ms(
    value: float, low: float | None = None, high: float | None = None, provenance: Provenance = MEASURED
) -> Measurement:
    return Measurement("latency", value, "ms", provenance, low, high)


def test_story_adds_up() -> None:
    parts = {"vision": ms(10, 8, 12, PREDICTED), "connector": ms(2), "embed": ms(1), "prefill": ms(20), "decode": ms(4)}
    figures = {m.name: m for m in story(parts, components=parts, slices=3, answer_tokens=11)}
    assert figures["image_encode"].value == 36
    assert (figures["image_encode"].low, figures["image_encode"].high) == (30, 42)
    assert figures["time_to_first_token"].value == 57
    assert figures["request_latency"].value == 57 + 10 * 5
    assert figures["tokens_per_second"].value == 200
    assert figures["image_encode"].provenance.kind is ProvenanceKind.PREDICTED, "the weakest of its parts"
    assert figures["tokens_per_second"].provenance.kind is ProvenanceKind.MEASURED


def test_rate_turns_the_interval_round() -> None:
    rate = story({"embed": ms(1, 1, 1), "decode": ms(4, 3, 9)}, components=LANGUAGE, slices=1, answer_tokens=1)[-1]
    assert (rate.low, rate.value, rate.high) == (100, 200, 250)


def test_story_leaves_out_what_it_cannot_say() -> None:
    known = {"embed": ms(1), "decode": ms(4)}
    assert [m.name for m in story(known, components=LANGUAGE, slices=1, answer_tokens=1)] == ["tokens_per_second"]


def test_components_that_do_not_chain_run_once_each() -> None:
    (alone,) = story({"main": ms(5)}, components=["main"], slices=7, answer_tokens=9)
    assert (alone.name, alone.value) == ("latency", 5)
    both = ["vision", "text"]
    (sum_of_both,) = story({"vision": ms(5), "text": ms(2)}, components=both, slices=7, answer_tokens=9)
    assert (sum_of_both.name, sum_of_both.value) == ("latency", 7)
    assert story({"vision": ms(5)}, components=both, slices=1, answer_tokens=1) == [], "a part is not the whole"


@pytest.mark.parametrize(
    ("text", "unit", "value"),
    [("200 ms", "ms", 200), ("0.2s", "ms", 200), ("64 MB", "bytes", 64e6), ("1 GiB", "bytes", 2**30),
     ("2 points", "points", 2), ("95 %", "share", 0.95), ("95%", "share", 0.95), ("20 tok/s", "tok/s", 20)],
)  # fmt: skip
def test_quantities(text: str, unit: str, value: float) -> None:
    assert parse_quantity(text, unit) == pytest.approx(value)


@given(st.floats(1e-3, 1e11), st.sampled_from(["ms", "bytes", "tok/s", "points", "share"]))
def test_quantities_survive_writing(value: float, unit: str) -> None:
    again = parse_quantity(format_quantity(value, unit), unit)
    assert again == pytest.approx(value, rel=6e-3, abs=0.5 if unit == "bytes" else 0)


def test_budget_patterns_override_in_order() -> None:
    budget = parse_budget("targets: {'*': {latency: 9 ms}, 'qualcomm/*': {latency: {limit: 5 ms, hard: false}}}", "b")
    assert budget.limits("x86/generic")["latency"].value == 9
    assert budget.limits("qualcomm/sm8650@2.51")["latency"].value == 5
    assert not budget.limits("qualcomm/sm8650")["latency"].hard


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("targets: {'*': {peek_memory: 1 MB}}", "peak_memory"),
        ("target: {'*': {latency: 1 ms}}", "targets"),
        ("targets: {'*': {latency: 5 MB}}", "units"),
        ("targets: {'*': {latency: {limt: 5 ms}}}", "limit"),
        ("targets: {'*': {latency: {limit: 5 ms, hard: maybe}}}", "hard"),
        ("targets: {'*': {latency: fast}}", "200 ms"),
        ("targets: {}", "mapping"),
        ("[]", "mapping"),
    ],
)
def test_bad_budgets_say_what_to_write(text: str, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        parse_budget(text, "budget.yaml")


def test_unreadable_budget(tmp_path: Path) -> None:
    with pytest.raises(InputError):
        load_budget(tmp_path / "none.yaml")
    (tmp_path / "b.yaml").write_text("targets: [")
    with pytest.raises(InputError):
        load_budget(tmp_path / "b.yaml")


def test_shipped_budget_speaks_about_all_vendors() -> None:
    for target in ("qualcomm/sm8650", "apple/a17-pro", "mediatek/mt6989", "x86/generic"):
        assert {"score_drop", "peak_memory", "artifact_size", "image_encode"} <= set(default_budget().limits(target))
    assert all(name in FIGURES for limits in default_budget().targets.values() for name in limits)


@pytest.mark.parametrize(
    ("figure", "hard", "status"),
    [
        (ms(5), True, Status.PASS),
        (ms(11), True, Status.FAIL),
        (ms(11), False, Status.WARN),
        (None, True, Status.FAIL),
        (None, False, Status.WARN),
        (ms(8, 6, 12, PREDICTED), True, Status.WARN),
        (ms(12, 9, 15, PREDICTED), True, Status.WARN),
        (ms(15, 12, 20, PREDICTED), True, Status.FAIL),
        (ms(5, 4, 9, PREDICTED), True, Status.PASS),
        (ms(8, 6, 12, MEASURED), True, Status.PASS),
    ],
)
def test_ceiling(figure: Measurement | None, hard: bool, status: Status) -> None:
    budget = parse_budget(f"targets: {{'a/b': {{latency: {{limit: 10 ms, hard: {str(hard).lower()}}}}}}}", "b")
    verdict = gate(budget, {"a/b": {"latency": figure} if figure else {}})
    assert verdict.status is verdict.checks[0].status is status


@pytest.mark.parametrize(
    ("value", "low", "high", "status"),
    [
        (0.99, None, None, Status.PASS),
        (0.9, None, None, Status.FAIL),
        (0.97, 0.9, 1.0, Status.WARN),
        (0.9, 0.8, 0.94, Status.FAIL),
    ],
)
def test_floor(value: float, low: float | None, high: float | None, status: Status) -> None:
    budget = parse_budget("targets: {'*': {npu_offload: 95 %}}", "b")
    verdict = gate(budget, {"a/b": {"npu_offload": Measurement("npu_offload", value, "share", PREDICTED, low, high)}})
    assert verdict.status is status


def test_worst_check_decides() -> None:
    budget = parse_budget("targets: {'*': {latency: {limit: 1 ms, hard: false}}, 'a/*': {peak_memory: 1 MB}}", "b")
    figures = {"latency": ms(5), "peak_memory": Measurement("peak_memory", 5, "bytes", MEASURED)}
    verdict = gate(budget, {"a/b": figures, "c/d": {"latency": ms(0.5)}})
    assert (verdict.status, len(verdict.checks)) == (Status.WARN, 3)


def test_budget_that_says_nothing_is_an_error() -> None:
    with pytest.raises(UsageError, match="no limit applies"):
        gate(parse_budget("targets: {'a/*': {latency: 1 ms}}", "b"), {"x/y": {}})
