"""Device profiles: every figure has a source, every name leads somewhere."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocketport.errors import InputError, UsageError
from pocketport.profiles.device import device_ids, find_device, load_device, parse_device, profiles, slug

WANTED = [
    "apple/a14", "apple/a15", "apple/a16", "apple/a17-pro", "apple/a18", "apple/a18-pro", "apple/m1", "apple/m2", "apple/m3", "apple/m4",
    "mediatek/mt6897", "mediatek/mt6989", "mediatek/mt6991", "qualcomm/sc8380xp", "qualcomm/sm7750", "qualcomm/sm8450", "qualcomm/sm8475",
    "qualcomm/sm8550", "qualcomm/sm8650", "qualcomm/sm8750", "qualcomm/sm8850", "qualcomm/snapdragon-x2-elite", "x86/core-ultra-7-155h",
]  # fmt: skip


def test_the_chips_that_people_ask_for() -> None:
    assert set(WANTED) <= set(device_ids())
    assert len(device_ids()) == len(set(device_ids()))


def test_every_figure_is_positive_and_has_a_source() -> None:
    for profile in profiles():
        assert all(f.value > 0 and f.source for f in profile.figures.values()), profile.target
        assert profile.kind in ("phone", "mid-range", "laptop", "automotive", "embedded")
        assert load_device(f"{profile.target}@2.51") == profile


def test_no_name_belongs_to_two_chips() -> None:
    names = [name for profile in profiles() for name in profile.names]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("name", "target"),
    [("galaxy-s25", "qualcomm/sm8750"), ("Galaxy S24+", "qualcomm/sm8650"), ("Samsung Galaxy S26", "qualcomm/sm8850"), ("sm8550", "qualcomm/sm8550"),
     ("xiaomi-14-pro", "qualcomm/sm8650"), ("Snapdragon X Elite CRD", "qualcomm/sc8380xp"), ("iPhone 15 Pro", "apple/a17-pro"),
     ("vivo-x100-pro", "mediatek/mt6989"), ("macbook-pro-m1", "apple/m1"), ("qcs8550-proxy", "qualcomm/sm8550")],
)  # fmt: skip
def test_people_s_names(name: str, target: str) -> None:
    assert find_device(name).target == target


def test_an_unknown_name_suggests_near_ones() -> None:
    with pytest.raises(UsageError, match="galaxy-s24"):
        find_device("galaxy-s24x")


def test_an_unknown_target_has_no_profile() -> None:
    assert load_device("qualcomm/sm9999") is None


@given(st.text(max_size=40))
def test_slugs_are_stable(name: str) -> None:
    assert slug(slug(name)) == slug(name)


def test_a_damaged_profile() -> None:
    with pytest.raises(InputError, match=r"x\.toml"):
        parse_device('target = "a/b"\nnpu = [', "x.toml")
    with pytest.raises(InputError, match="tops"):
        parse_device('target = "a/b"\nname = "n"\nnpu = "x"\nkind = "phone"\ntops = 4', "x.toml")


@given(st.text(max_size=80))
def test_any_text_is_a_profile_or_refused(text: str) -> None:
    with pytest.raises(InputError):
        parse_device(text, "x.toml")
