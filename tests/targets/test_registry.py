"""Backends by name."""

from importlib.metadata import EntryPoint

import pytest

from pocketport.errors import ToolchainError, UsageError
from pocketport.targets import registry
from pocketport.targets.contract import Backend, Target
from pocketport.targets.example import backend as example


def test_built_in_backends_are_found_by_vendor() -> None:
    assert backend_name("example/one") == "example"
    assert backend_name("x86") == "x86"


def backend_name(target: str) -> str:
    return registry.backend_for(Target.parse(target)).vendor


def test_every_real_vendor_is_listed_and_the_fictional_one_is_not() -> None:
    names = [backend.vendor for backend in registry.all_backends()]
    assert names == ["apple", "mediatek", "qualcomm", "x86"]
    assert all(isinstance(backend, Backend) for backend in registry.all_backends())


def test_an_unknown_vendor_names_the_nearest() -> None:
    with pytest.raises(UsageError) as caught:
        registry.backend_for(Target.parse("qualcom/sm8650"))
    assert "did you mean qualcomm?" in caught.value.fix


@pytest.mark.parametrize("vendor", ["apple", "mediatek", "qualcomm"])
def test_a_vendor_without_a_soc_lists_those_there_are(vendor: str) -> None:
    backend = registry.backend_for(Target.parse(vendor))
    with pytest.raises(UsageError, match="none is named") as caught:
        backend.legality(Target.parse(vendor))
    assert all(target.soc in caught.value.fix for target in backend.targets())


def test_third_parties_are_found_by_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    provide(monkeypatch, EntryPoint("mychip", "pocketport.targets.example:backend", registry.ENTRY_POINT_GROUP))
    assert registry.backend_for(Target.parse("mychip/one")) is example
    assert example in registry.all_backends()


def test_a_third_party_cannot_take_over_a_vendor(monkeypatch: pytest.MonkeyPatch) -> None:
    provide(monkeypatch, EntryPoint("x86", "pocketport.targets.example:backend", registry.ENTRY_POINT_GROUP))
    assert backend_name("x86") == "x86"


@pytest.mark.parametrize("value", ["no_such_module:backend", "pocketport.targets.example.backend:KIND"])
def test_a_broken_third_party_is_named(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    provide(monkeypatch, EntryPoint("broken", value, registry.ENTRY_POINT_GROUP))
    with pytest.raises(ToolchainError, match="broken"):
        registry.backend_for(Target.parse("broken/one"))


def provide(monkeypatch: pytest.MonkeyPatch, point: EntryPoint) -> None:
    monkeypatch.setattr(registry, "entry_points", lambda group: [point] if group == registry.ENTRY_POINT_GROUP else [])
