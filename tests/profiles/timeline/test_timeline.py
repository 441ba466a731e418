"""Requests over a model and a device of round numbers: every sum by hand."""

from dataclasses import replace

import pytest
from hand_made import ASKED, GB, MODEL, PHONE, figure, part, set_up_by_hand
from hypothesis import given
from hypothesis import strategies as st

from pocketport.errors import UsageError
from pocketport.profiles.timeline.description import Weights
from pocketport.profiles.timeline.handset import find_handset
from pocketport.profiles.timeline.residence import Resident, cache_bytes, limits, paged_bytes, resident
from pocketport.profiles.timeline.setting import Scenario, Setting
from pocketport.profiles.timeline.timeline import timeline


@pytest.fixture(autouse=True)
def round_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    set_up_by_hand(monkeypatch)


def test_phases_and_times_by_hand() -> None:
    followed = timeline(MODEL, PHONE, ASKED, Setting(context=0))
    assert [(p.name, p.parts) for p in followed.phases] == [
        ("load", ("vision",)), ("encode", ("vision",)), ("release", ("vision",)), ("load", ("language",)),
        ("prefill", ("language",)), ("decode", ("language",)),
    ]  # fmt: skip
    figures = followed.figures
    # 4 views of 100 rows of 10⁹ MACs: 800 GFLOP at a quarter of 1000 GFLOP/s
    assert figures["image_encode"].value == pytest.approx(3200)
    assert (figures["image_encode"].low, figures["image_encode"].high) == pytest.approx((1600, 6400))
    # 100 tokens of 10⁹ MACs
    assert figures["prefill"].value == pytest.approx(800)
    assert figures["encode_latency"].value == pytest.approx(4000)
    # 1 GB of either part at 2 GB/s; both are read within the request
    assert figures["load_time"].value == pytest.approx(1000)
    assert figures["time_to_first_token"].value == pytest.approx(5000)
    # weights, and the cache of 105 tokens at two bytes an element, at a quarter of 76.8 GB/s
    read = GB + 50_000 * 105 * 2
    assert figures["tokens_per_second"].value == pytest.approx(0.25 * 76.8e9 / read)
    assert figures["request_latency"].value == pytest.approx(5000 + 10 * read / (0.25 * 76.8e6))
    assert figures["npu_offload"].value == 0


def test_memory_by_hand() -> None:
    followed = timeline(MODEL, PHONE, ASKED, Setting(context=0))
    cache = 50_000 * 110 * 2
    assert [p.memory.total for p in followed.phases] == [GB, GB, 0, GB + cache, GB + cache, GB + cache]
    assert followed.figures["peak_memory"].value == GB + cache
    assert followed.figures["app_size"].value == 2 * GB
    both = timeline(MODEL, PHONE, ASKED, Setting(context=0, sequential=False))
    assert [p.name for p in both.phases] == ["load", "encode", "prefill", "decode"]
    assert both.figures["peak_memory"].value == 2 * GB + cache
    assert both.figures["time_to_first_token"].value < both.phases[2].end_ms, "loaded before the request"


def test_what_waits_pages_out_what_runs() -> None:
    both = timeline(MODEL, PHONE, ASKED, Setting(context=0, sequential=False))
    beyond = 2 * GB + 50_000 * 110 * 2 - 1.5 * GB
    assert [p.paged_bytes for p in both.phases] == [0, beyond, 0, 0], (
        "the tower's pages, once; then they are not needed"
    )
    assert both.figures["image_encode"].value == pytest.approx(3200 + beyond / 0.1e6)
    assert [d.code for d in both.diagnostics] == ["memory.paging"]
    assert timeline(MODEL, PHONE, ASKED, Setting(context=0)).diagnostics == []


def test_a_part_beyond_the_limit_pages_in_every_pass() -> None:
    small = PHONE.model_copy(update={"app_memory_gb": figure(0.8)})
    followed = timeline(MODEL, small, Scenario(None, 10, 5), Setting(context=0))
    beyond = GB + 50_000 * 15 * 2 - 0.8 * GB
    assert [(p.name, p.paged_bytes) for p in followed.phases] == [
        ("load", 0),
        ("prefill", beyond),
        ("decode", 5 * beyond),
    ]


@given(st.integers(0, 10), st.integers(0, 10), st.integers(1, 9))
def test_paging_is_monotonous_and_bounded(own: int, waiting: int, passes: int) -> None:
    def paged(limit: float) -> int:
        phone = PHONE.model_copy(update={"app_memory_gb": figure(limit)})
        return paged_bytes(Resident(weights=own * GB), Resident(weights=waiting * GB), phone, passes)

    assert paged(own + waiting) == 0
    assert paged(1) >= paged(2) >= paged(3)
    assert paged(0) <= own * GB * passes


def test_no_limit_no_paging() -> None:
    unknown = PHONE.model_copy(update={"app_memory_gb": None})
    followed = timeline(MODEL, unknown, ASKED, Setting(sequential=False))
    assert not any(p.paged_bytes for p in followed.phases)
    assert [d.code for d in followed.diagnostics] == ["memory.unknown-limit"]


def test_the_npus_limits_speak_before_compiling() -> None:
    heavy = MODEL.model_copy(update={"parts": {"language": part(0, linear=Weights(elements=5 * GB, channels=0))}})
    setting = Setting().on("npu", "language").encoded("w4a16", "language")
    found = {d.code: d for d in limits(heavy, PHONE, setting)}
    assert set(found) == {"memory.serialize-limit"}, "2.5 GB: more than 2 GB, less than 3.5"
    twice = {d.code for d in limits(heavy, PHONE, replace(setting, shared_weights=False))}
    assert twice == {"memory.serialize-limit", "memory.context-limit"}, "two copies: 5 GB"
    assert "2 contexts" in found["memory.serialize-limit"].fix
    assert list(limits(heavy, PHONE, Setting())) == [], "on the processor there is no such limit"


def test_bytes_by_scheme() -> None:
    one = part(0, linear=Weights(elements=6400, channels=10), table=Weights(elements=320, channels=5), other=7)
    assert one.weight_bytes("fp16") == 2 * (6400 + 320 + 7)
    assert one.streamed_bytes("w8a16") == 6400 + 2 * 10 + 14
    assert one.streamed_bytes("w4b32a16") == 3200 + 2 * 200 + 14
    assert one.weight_bytes("w4b32a16") == 3200 + 400 + 14 + 160 + 20
    assert MODEL.parts["language"].weight_bytes("q4_k_m") == GB
    with pytest.raises(UsageError, match="q4_k_m"):
        MODEL.parts["language"].weight_bytes("q4_k_n")


def test_cache_and_buffers() -> None:
    setting = Setting(context=1000, cache_bits=8).encoded("fp16", "language")
    assert cache_bytes(MODEL, ASKED, setting) == 50_000 * 1000
    headed = MODEL.model_copy(update={"parts": {"language": part(1, cache_elements=50_000, shape={"head_size": 50})}})
    assert cache_bytes(headed, ASKED, setting) == (50_000 + 8 * 500) * 1000, "500 heads of values have a range"
    assert cache_bytes(headed, ASKED, replace(setting, cache_bits=4)) == (25_000 + 8 * 500) * 1000
    assert cache_bytes(headed, ASKED, replace(setting, cache_bits=16)) == 100_000 * 1000
    buffered = MODEL.model_copy(
        update={"parts": {"language": part(1, arena_bytes=100, io_bytes=10, step_arena_bytes=3, cache_elements=0)}}
    )
    assert resident(buffered, ["language"], ASKED, setting).activations == 220, "32 bits on the processor"
    assert resident(buffered, ["language"], ASKED, setting, decoding=True).activations == 6
    assert resident(buffered, ["language"], ASKED, setting.on("npu", "language")).activations == 110


def test_devices_come_with_sources() -> None:
    for name in ("xiaomi-14-pro", "vivo X100 Pro", "macbook-pro-m1"):
        device = find_handset(name)
        assert device.chip.target == device.target
        figures = [device.cpu_gflops, device.storage_gbps, device.app_memory_gb, device.paging_gbps]
        assert all(f.source and f.value > 0 for f in figures if f is not None)
    with pytest.raises(UsageError, match="xiaomi-14-pro"):
        find_handset("xiaomi-14-pr")
