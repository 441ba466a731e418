"""Factors that a chip borrows from measured ones."""

import pytest

from pocketport.profiles.device import DeviceProfile, load_device
from pocketport.profiles.prediction.devices import borrowed
from pocketport.profiles.prediction.parameters import FactorsData

ALIKE = ("qualcomm/qcs9075", "qualcomm/qcs8275", "qualcomm/sm8550", "qualcomm/sm8650")
SLOW = "qualcomm/sa7255p"


def profile(target: str) -> DeviceProfile:
    found = load_device(target)
    assert found is not None
    return found


def factors(value: float, log_spread: float = 0.0) -> FactorsData:
    return FactorsData(matrix=value, vector=value, memory=value, overhead=value, n=50, log_spread=log_spread)


def test_one_slow_chip_among_others_is_not_averaged_in() -> None:
    known = {target: factors(1 + 0.1 * i) for i, target in enumerate(ALIKE)}
    without, with_slow = (
        borrowed(profile("qualcomm/sc8380xp"), measured) for measured in (known, {**known, SLOW: factors(10)})
    )
    assert without is not None and with_slow is not None
    assert 1 <= without[0].matrix <= with_slow[0].matrix <= 1.3


def test_the_median_of_two_equals_lies_between_them() -> None:
    known = {"qualcomm/qcs9075": factors(1.0), "qualcomm/sa8775p": factors(4.0)}
    lent = borrowed(profile("qualcomm/sc8380xp"), known)
    assert lent is not None
    assert lent[0].vector == pytest.approx(2.0)


def test_unsteady_measurements_lend_nothing() -> None:
    known = {"qualcomm/sa8295p": factors(2.0), "qualcomm/qcs6490": factors(6.0, log_spread=0.9)}
    lent = borrowed(profile("qualcomm/sm8450"), known)
    assert lent is not None
    assert lent[0].matrix == pytest.approx(2.0)
    assert lent[2] == profile("qualcomm/sa8295p").name
