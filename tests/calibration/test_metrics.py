import math

import numpy as np
import pytest

from pocketport.calibration.metrics import decibels, sqnr_db


def test_the_formula_by_hand() -> None:
    assert sqnr_db(np.array([3.0, 4.0]), np.array([3.0, 4.5])) == pytest.approx(10 * math.log10(25 / 0.25))


def test_scale_free_and_its_limits() -> None:
    rng = np.random.default_rng(0)
    reference, test = rng.standard_normal(100), rng.standard_normal(100)
    assert sqnr_db(reference * 1e6, test * 1e6) == pytest.approx(sqnr_db(reference, test))
    assert sqnr_db(reference, reference) == math.inf
    assert sqnr_db(np.zeros(3), np.ones(3)) == -math.inf
    assert sqnr_db(np.zeros(3), np.zeros(3)) == math.inf


def test_energies_that_floats_do_not_hold() -> None:
    assert decibels(25.0, math.inf) == -math.inf
    assert decibels(25.0, math.inf, 300.0) == -300.0
    assert decibels(1e300, 1e-300) == pytest.approx(6000.0)  # whose ratio is more than a float holds
    assert decibels(1e-300, 1e300, 300.0) == -300.0


def test_a_full_scale_sine_in_b_bits_has_six_db_a_bit() -> None:
    sine = np.sin(np.linspace(0, 2000, 200_000))
    rounded = np.rint(sine * 127) / 127
    assert sqnr_db(sine, rounded) == pytest.approx(6.02 * 8 + 1.76, abs=0.3)


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match="shapes differ"):
        sqnr_db(np.zeros(3), np.zeros(4))
