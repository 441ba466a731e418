"""What `pocketport profile MODEL --device PHONE --image …` prints, over the model of round numbers."""

import json
from itertools import pairwise
from pathlib import Path

import pytest
import typer
from hand_made import IMAGE, MODEL, PHONE, set_up_by_hand

from pocketport.commands import timeline as command
from pocketport.compress.bundle import ModelBundle
from pocketport.errors import InputError, UsageError
from pocketport.run_document import TargetRecord, TaskRecord
from tests.pocketport.hand_made_run import write_document

TASK = TaskRecord(metric="exact_match", value=0.9, float_value=0.95, n=100, provenance="emulated", engine="given")

BUDGET = """
version: 2
scenarios:
  photo: {image: 10x10, prompt_tokens: 20, answer_tokens: 10}
  text: {prompt_tokens: 20, answer_tokens: 10}
devices:
  hand:
    photo: {image_encode: LIMIT, peak_memory: 2 GB}
    text: {tokens_per_second: 1 tok/s}
"""


@pytest.fixture(autouse=True)
def by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    set_up_by_hand(monkeypatch)
    monkeypatch.setattr(command, "describe", lambda source: MODEL)
    monkeypatch.setattr(command, "find_handset", lambda device: PHONE)
    monkeypatch.setattr(command, "plan_image", lambda source, size: IMAGE)


def test_a_cache_of_fewer_bits(capsys: pytest.CaptureFixture[str]) -> None:
    found = []
    for bits in (16, 4):
        command.follow_request("m", "hand", image=None, cache_bits=bits, json_output=True)
        found.append(json.loads(capsys.readouterr().out))
    caches = [f["phases"][-1]["memory"]["cache"] for f in found]
    assert caches[1] * 4 == caches[0] == 50_000 * 4096 * 2
    with pytest.raises(UsageError, match="3 bits"):
        command.follow_request("m", "hand", image=None, cache_bits=3)


def test_json_has_phases_that_follow_one_another(capsys: pytest.CaptureFixture[str]) -> None:
    command.follow_request("m", "hand", image="10x10", prompt_tokens=20, answer_tokens=10, json_output=True)
    told = json.loads(capsys.readouterr().out)
    assert told["schema"] == "pocketport.timeline/1"
    assert told["request"]["image"]["views"] == 4 and told["request"]["prompt_tokens"] == 100
    phases = told["phases"]
    assert [p["name"] for p in phases] == ["load", "encode", "release", "load", "prefill", "decode"]
    assert all(a["end_ms"] == b["start_ms"] for a, b in pairwise(phases))
    assert all(sum(p["memory"][k] for k in ("weights", "cache", "activations")) == p["memory"]["total"] for p in phases)
    figures = told["figures"]
    assert figures["peak_memory"]["value"] == max(p["memory"]["total"] for p in phases)
    assert all(f["provenance"] == "predicted" and f["detail"] for f in figures.values())
    assert figures["request_latency"]["value"] == pytest.approx(phases[-1]["end_ms"])


def test_people_get_bars_and_figures(capsys: pytest.CaptureFixture[str]) -> None:
    command.follow_request("m", "hand", image="10x10", resident=True, engine="generic")
    printed = capsys.readouterr()
    assert "10x10 in 4 views" in printed.out and "█" in printed.out
    assert "memory.paging" in printed.err


@pytest.mark.parametrize(("limit", "code"), [("10 s", 0), ("900 ms", 1)])
def test_budgets_decide_the_exit_and_say_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], limit: str, code: int
) -> None:
    path = tmp_path / "budget.yaml"
    path.write_text(BUDGET.replace("LIMIT", limit), encoding="utf-8")
    with pytest.raises(typer.Exit) as left:
        command.follow_request("m", "hand", image=None, budget=path, json_output=True)
    assert left.value.exit_code == code
    requests = {r["scenario"]: r for r in json.loads(capsys.readouterr().out)["requests"]}
    assert set(requests) == {"photo", "text"}
    encode = next(f for f in requests["photo"]["verdict"]["findings"] if f["figure"] == "image_encode")
    assert bool(encode["blame"]) == bool(encode["remedy"]) == (code == 1)
    assert requests["text"]["verdict"]["status"] == "pass" and requests["text"]["request"]["image"] is None
    with pytest.raises(typer.Exit):
        command.follow_request("m", "hand", image=None, budget=path)
    assert ("cheapest:" in capsys.readouterr().out) == (code == 1)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"on": ["vision=gpu"]}, "npu"), ({"on": ["tower=npu"]}, "vision"), ({"weights": ["language"]}, "part=value"),
        ({"engine": "tunned"}, "tuned"), ({"image": "10by10"}, "1344x1344"), ({"weights": ["language=q4_k_n"]}, "q4_k_m"),
    ],
)  # fmt: skip
def test_mistakes_are_told(options: dict[str, object], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        command.follow_request("m", "hand", **{"image": "10x10", **options})  # type: ignore[arg-type]


def test_mistakes_are_told_before_the_model_is_described(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(command, "describe", lambda _: pytest.fail("described"))
    for options in ({"on": ["vision=gpu"]}, {"image": "10by10"}, {"image": None, "cache_bits": 3}):
        with pytest.raises(UsageError):
            command.follow_request("m", "hand", **{"image": "10x10", **options})  # type: ignore[arg-type]
    with pytest.raises(InputError, match="can't be read: No such file"):
        command.follow_request("m", "hand", image=None, budget=tmp_path / "none.yaml")


def test_a_budget_without_the_device_is_told(tmp_path: Path) -> None:
    path = tmp_path / "budget.yaml"
    path.write_text(BUDGET.replace("LIMIT", "1 s").replace("hand:", "other:"), encoding="utf-8")
    with pytest.raises(UsageError, match=r"budget\.yaml: it has no scenario"):
        command.follow_request("m", "hand", image=None, budget=path)


def run_of(directory: Path, *targets: str, task: TaskRecord | None = TASK) -> Path:
    """A finished run for these targets."""
    bundle = ModelBundle("m", "minicpmv", "0" * 64, {})
    write_document(directory, bundle, [TargetRecord(id=t, status="ok", task=task) for t in targets])
    return directory


def test_a_finished_run_lends_its_score(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "budget.yaml"
    path.write_text(BUDGET.replace("image_encode: LIMIT", "score_drop: 2 points"), encoding="utf-8")
    found = {}
    for name, run in (("alone", None), ("lent", run_of(tmp_path, "x86", PHONE.target))):
        with pytest.raises(typer.Exit) as left:
            command.follow_request("m", "hand", image=None, budget=path, run=run, json_output=True)
        assert left.value.exit_code == 1
        (photo,) = [r for r in json.loads(capsys.readouterr().out)["requests"] if r["scenario"] == "photo"]
        (found[name],) = [f for f in photo["verdict"]["findings"] if f["figure"] == "score_drop"]
    assert found["alone"]["value"] is None and "no figure" in found["alone"]["reason"]
    assert found["lent"]["value"] == pytest.approx(5.0) and found["lent"]["reason"] == "over 2 points"


@pytest.mark.parametrize(
    ("targets", "task", "told"),
    [(("x86", "apple/a17-pro"), TASK, "its targets are x86, apple/a17-pro"), (("x86",), None, "x86 was not scored")],
)
def test_a_run_that_says_nothing_is_told(
    tmp_path: Path, targets: tuple[str, ...], task: TaskRecord | None, told: str
) -> None:
    path = tmp_path / "budget.yaml"
    path.write_text(BUDGET.replace("LIMIT", "1 s"), encoding="utf-8")
    with pytest.raises(UsageError, match=told):
        command.follow_request("m", "hand", image=None, budget=path, run=run_of(tmp_path, *targets, task=task))
    with pytest.raises(UsageError, match="only a budget"):
        command.follow_request("m", "hand", image="10x10", run=tmp_path)
