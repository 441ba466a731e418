"""Blame and remedies, over the model of round numbers."""

from pathlib import Path

import pytest
from hand_made import ASKED, GB, MODEL, PHONE, set_up_by_hand

from pocketport.errors import UsageError
from pocketport.profiles.budget import Limit, load_budget, parse_budget
from pocketport.profiles.gate import Status
from pocketport.profiles.timeline.description import ModelDescription
from pocketport.profiles.timeline.remedies import applied, changes, remedies
from pocketport.profiles.timeline.setting import Setting
from pocketport.profiles.timeline.timeline import timeline
from pocketport.profiles.timeline.verdict import Finding, judge


@pytest.fixture(autouse=True)
def round_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    set_up_by_hand(monkeypatch)


LADDERED = MODEL.model_copy(update={"parts": {
    "vision": MODEL.parts["vision"],
    "language": MODEL.parts["language"].model_copy(update={
        "gguf": {"q8_0": 2 * GB, "q6_k": 3 * GB // 2, "q5_k_m": 5 * GB // 4, "q4_k_m": GB, "iq4_xs": 9 * GB // 10},
        "gguf_table": dict.fromkeys(("q8_0", "q6_k", "q5_k_m", "q4_k_m", "iq4_xs"), 0),
    }),
}})  # fmt: skip


def finding(model: ModelDescription, setting: Setting, figure: str, limit: float, hard: bool = True) -> Finding:
    verdict = judge(timeline(model, PHONE, ASKED, setting), {figure: Limit(limit, hard)}, "hand, photo")
    return verdict.findings[0]


def test_within_there_is_nothing_to_explain() -> None:
    found = finding(MODEL, Setting(context=0), "peak_memory", 2 * GB)
    assert (found.check.status, found.blame, found.remedy) == (Status.PASS, "", "")


def test_free_changes_come_first() -> None:
    found = finding(MODEL, Setting(context=0, sequential=False), "peak_memory", 1.2 * GB)
    assert found.check.status is Status.FAIL
    assert "weights of" in found.blame and "GB" in found.blame
    assert found.remedy == "load the language model after the vision tower is released"
    assert found.then == GB + 50_000 * 110 * 2


def test_fewer_bits_where_nothing_else_helps() -> None:
    found = finding(LADDERED, Setting(context=0).encoded("q8_0", "language"), "tokens_per_second", 14.5)
    assert "language: decode on the cpu" in found.blame
    assert "fewer bits: q5_k_m" in found.remedy, "q6_k is not enough, q4_k_m more than needed"
    assert found.then is not None and found.then >= 14.5


def test_fewer_bits_are_any_of_llama_cpps_mixtures_that_take_less() -> None:
    """From the narrowest 4-bit one too, and from one that is not on the ladder."""
    sizes = {
        "f16": 4, "q8_0": 2.2, "q5_k_m": 1.5, "q4_k_m": 1.2, "q4_k_s": 1.1, "q4_0": 1.1, "iq4_xs": 1, "q3_k_s": 0.9, "q2_k": 0.8,
    }  # fmt: skip
    gguf = {name: int(size * GB) for name, size in sizes.items()}
    language = MODEL.parts["language"].model_copy(update={"gguf": gguf, "gguf_table": dict.fromkeys(gguf, 0)})
    model = MODEL.model_copy(update={"parts": {**MODEL.parts, "language": language}})

    def offered(now: str) -> list[str]:
        setting = Setting(context=0).encoded(now, "language")
        return [c.fields["schemes"]["language"] for c in changes(model, ASKED, setting) if c.kind == "schemes"]

    assert offered("iq4_xs") == ["q3_k_s", "q2_k"]
    assert offered("q4_0") == ["iq4_xs", "q3_k_s", "q2_k"]
    assert offered("fp16") == ["q8_0", "q5_k_m", "q4_k_m", "q4_k_s", "iq4_xs", "q3_k_s", "q2_k"]
    assert offered("q2_k") == [] == offered("w4b32a16")
    found = finding(model, Setting(context=0).encoded("iq4_xs", "language"), "tokens_per_second", 20)
    assert "fewer bits: q3_k_s" in found.remedy and found.then is not None and found.then >= 20


def test_fewer_slices_where_the_encoder_is_to_blame() -> None:
    found = finding(MODEL, Setting(context=0), "image_encode", 900)
    assert found.check.status is Status.FAIL and "vision: encode on the cpu" in found.blame
    assert found.remedy.startswith("cut the image into") or "NPU" in found.remedy
    assert found.then is not None and found.then <= 900


def test_nothing_known_helps() -> None:
    found = finding(MODEL, Setting(context=0), "load_time", 1)
    assert found.blame and (found.remedy, found.then) == ("", None)


def test_a_remedy_may_not_break_what_holds() -> None:
    followed = timeline(LADDERED, PHONE, ASKED, Setting(context=0, sequential=False))
    first = followed.figures["time_to_first_token"].value
    limits = {"peak_memory": Limit(1.2 * GB), "time_to_first_token": Limit(first)}
    verdict = judge(followed, limits, "hand, photo")
    memory = verdict.findings[0]
    assert memory.remedy, "something helps"
    scenario, setting = ASKED, followed.setting
    for chosen in remedies(LADDERED, scenario, setting):
        if "; ".join(c.what for c in chosen) == memory.remedy:
            then = timeline(LADDERED, PHONE, *applied(chosen, scenario, setting)).figures
            assert then["peak_memory"].value <= 1.2 * GB and then["time_to_first_token"].value <= first
            return
    raise AssertionError("the remedy is none of those that were tried")


def test_soft_limits_warn_and_missing_figures_count() -> None:
    soft = finding(MODEL, Setting(context=0), "peak_memory", 1, hard=False)
    assert soft.check.status is Status.WARN and soft.blame
    missing = finding(MODEL, Setting(context=0), "score_drop", 1)
    assert missing.check.status is Status.FAIL and missing.check.value is None
    with pytest.raises(UsageError, match="no limit"):
        judge(timeline(MODEL, PHONE, ASKED, Setting()), {}, "x")


def test_every_change_changes_what_it_says() -> None:
    for change in changes(
        LADDERED, ASKED, Setting(sequential=False, configuration="generic").encoded("q8_0", "language")
    ):
        scenario, setting = applied((change,), ASKED, Setting())
        assert (scenario.views == change.views) if change.views else (scenario == ASKED)
        assert all(getattr(setting, name) == value for name, value in change.fields.items())
    costs = [sum(c.cost for c in chosen) for chosen in remedies(LADDERED, ASKED, Setting())]
    assert costs == sorted(costs)


BUDGET = """
version: 2
scenarios:
  photo: {image: 1344x1344, answer_tokens: 64}
  text: {prompt_tokens: 200}
devices:
  "*":
    "*": {peak_memory: 6 GB}
  xiaomi-14-pro:
    photo: {image_encode: 5 s, tokens_per_second: {limit: 6 tok/s, hard: false}, peak_memory: 5 GB}
"""


def test_scenarios_and_devices(tmp_path: Path) -> None:
    (tmp_path / "budget.yaml").write_text(BUDGET, encoding="utf-8")
    budget = load_budget(tmp_path / "budget.yaml")
    photo = budget.scenarios["photo"]
    assert (photo.image, photo.prompt_tokens, photo.answer_tokens) == ((1344, 1344), 32, 64)
    assert budget.scenarios["text"].image is None
    limits = budget.request_limits("xiaomi-14-pro", "photo")
    assert limits["peak_memory"].value == 5e9 and limits["image_encode"].value == 5000
    assert not limits["tokens_per_second"].hard
    assert budget.request_limits("galaxy-s24", "text") == {"peak_memory": Limit(6e9)}
    assert budget.limits("qualcomm/sm8650") == {}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("devices: {p: {q: {latency: 1 ms}}}", "version: 2"),
        ("version: 3", "known"),
        ("{version: 2, scenarios: {a: {imag: 1x1}}, devices: {p: {a: {latency: 1 ms}}}}", "image"),
        ("{version: 2, scenarios: {a: {image: 1by1}}, devices: {p: {a: {latency: 1 ms}}}}", "1344x1344"),
        ("{version: 2, scenarios: {a: {prompt_tokens: -1}}, devices: {p: {a: {latency: 1 ms}}}}", "tokens"),
        ("{version: 2, devices: {p: {a: {latenci: 1 ms}}}}", "latency"),
    ],
)
def test_mistakes_are_told(text: str, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        parse_budget(text, "b")


def test_version_1_reads_as_before() -> None:
    assert parse_budget("targets: {'*': {latency: 9 ms}}", "b").limits("x86/generic")["latency"].value == 9
