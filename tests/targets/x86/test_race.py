"""Races between runners whose times are known."""

from collections.abc import Callable
from itertools import count

import numpy as np
import pytest

from pocketport.errors import ToolchainError
from pocketport.profiles.paired import FEWEST_TURNS
from pocketport.targets.x86.race import race

ENDLESS = 1e9  # seconds


class Machine:
    """A machine that gets slower with every run and has noise; runners take `ms` on it at its start."""

    def __init__(self, drift: float, noise: float) -> None:
        self.drift, self.noise, self.runs = drift, noise, 0
        self.rng = np.random.default_rng(1)

    def runner(self, ms: float) -> Callable[[], float]:
        def turn() -> float:
            self.runs += 1
            return ms * (1 + self.drift * self.runs) * float(np.exp(self.rng.normal(0, self.noise)))

        return turn


def test_the_slow_leave_early_and_the_fastest_wins_on_a_drifting_machine() -> None:
    machine = Machine(drift=0.01, noise=0.02)
    times = {"b": 1.2, "slow": 5.0, "a": 1.0, "c": 1.5}
    done = race({name: machine.runner(ms) for name, ms in times.items()}, ENDLESS)
    assert done.winner == done.leader == "a"
    assert done.running == ["a"]
    assert len(done.times["slow"]) == FEWEST_TURNS, "sent away at the first look"
    ratio = done.ratio("c", "a")
    assert ratio.low < 1.5 < ratio.high and ratio.longer


def test_of_equals_the_first_wins() -> None:
    machine = Machine(drift=0.0, noise=0.004)
    done = race({name: machine.runner(1.0) for name in ("simple", "other", "third")}, ENDLESS, most_turns=60)
    assert done.winner == "simple"


def test_time_halves_the_field(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = count()
    monkeypatch.setattr("pocketport.targets.x86.race.time.monotonic", lambda: float(next(clock)))
    machine = Machine(drift=0.0, noise=0.0)
    done = race({ms: machine.runner(ms) for ms in (4.0, 3.0, 2.0, 1.0)}, 8.0)
    assert (done.winner, done.running) == (1.0, [2.0, 1.0]), "the last leg ends with the time"
    assert len(done.times[4.0]) == len(done.times[3.0]) < len(done.times[2.0]) == len(done.times[1.0]) < FEWEST_TURNS


def test_who_cannot_go_on_drops_out() -> None:
    def breaks() -> float:
        raise ToolchainError("it crashed", where="here", fix="none")

    done = race({"broken": breaks, "fine": lambda: 1.0}, ENDLESS)
    assert (done.winner, done.failed) == ("fine", {"broken": "it crashed"})
    with pytest.raises(ToolchainError, match="it crashed"):
        race({"broken": breaks}, ENDLESS)
