"""A race: candidates take turns, and those that are slower leave early.

Successive halving (Jamieson and Talwalkar 2016, arXiv 1502.07943) over time: the race has as many legs as it takes to
halve the field down to one, all equally long, and after each one the slower half leaves. Within a leg leaves whoever is
surely slower, as in F-Race (Birattari et al. 2002), by the interval of the ratio to the fastest in the same turns.
"""

import math
import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import numpy as np

from pocketport.errors import ToolchainError
from pocketport.profiles.paired import FEWEST_TURNS, Ratio, paired_ratio
from pocketport.targets.configuration import Gain

Name = TypeVar("Name", bound=Hashable)
FINAL_TURNS = 60
TIE = 1.01  # ratios up to this are no difference
LOOK_EVERY = 1.5  # growth of the number of turns between two looks: each look is a chance to be wrong


@dataclass
class Race(Generic[Name]):
    """How a race went.

    Attributes:
        times: milliseconds of every turn, shorter for those who left; candidates in the order in which they were given.
        running: who was never sent away.
        failed: who could not go on, with the reason.
    """

    times: dict[Name, list[float]]
    running: list[Name]
    failed: dict[Name, str] = field(default_factory=dict)

    @property
    def leader(self) -> Name:
        """Whose median turn is the shortest, among those who never left."""
        return min(self.running, key=lambda name: float(np.median(self.times[name])))

    @property
    def winner(self) -> Name:
        """The first candidate in the given order that takes at most TIE times as long as the leader."""
        leader = self.leader
        return next(name for name in self.times if name in self.running and self.ratio(name, leader).value <= TIE)

    def ratio(self, first: Name, second: Name) -> Ratio:
        """How many times as long `first` took as `second`, in the turns that both had."""
        count = min(len(self.times[first]), len(self.times[second]))
        return paired_ratio(self.times[first][:count], self.times[second][:count])

    def gain(self, name: Name, chosen: Name) -> Gain | None:
        """How many times as long as `chosen` someone took; None for itself."""
        if name == chosen:
            return None
        ratio = self.ratio(name, chosen)
        return Gain(value=ratio.value, low=ratio.low, high=ratio.high)


def race(turns: Mapping[Name, Callable[[], float]], seconds: float, *, most_turns: int = 200) -> Race[Name]:
    """Run a race.

    Args:
        turns: what takes one turn of each candidate and gives its milliseconds; ToolchainError: it drops out.
        seconds: how long the race may last; the turn under way is finished.
        most_turns: of one candidate.

    Raises:
        ToolchainError: every candidate dropped out.
    """
    race = Race[Name]({name: [] for name in turns}, list(turns))
    rng = np.random.default_rng(0)
    start, legs = time.monotonic(), max(1, math.ceil(math.log2(max(len(turns), 1))))
    leg, look = 1, FEWEST_TURNS
    for turn in range(1, most_turns + 1):
        for index in rng.permutation(len(race.running)):  # nobody always runs behind the same one
            _take(race, race.running[index], turns)
        race.running = [name for name in race.running if name not in race.failed]
        if not race.running:
            why = next(iter(race.failed.values()), "there was no candidate")
            raise ToolchainError(f"no candidate ran: {why}", where="race", fix="see the reasons of each")
        if turn >= look:
            look = math.ceil(look * LOOK_EVERY)
            leader = race.leader
            race.running = [name for name in race.running if not race.ratio(name, leader).longer]
            if all(race.ratio(name, leader).high <= TIE for name in race.running):
                break
        if time.monotonic() - start >= seconds * leg / legs:
            leg += 1
            fastest = sorted(race.running, key=lambda name: float(np.median(race.times[name])))
            kept = set(fastest[: max(1, math.ceil(len(fastest) / 2))])
            race.running = [name for name in race.running if name in kept]
        if len(race.running) == 1 or time.monotonic() - start >= seconds:
            break
    return race


def take_turns(turns: Mapping[Name, Callable[[], float]], seconds: float) -> Race[Name]:
    """Turns of everyone until the time is over, at least FEWEST_TURNS and at most FINAL_TURNS; nobody leaves."""
    times: dict[Name, list[float]] = {name: [] for name in turns}
    end, order = time.monotonic() + seconds, list(turns)
    for turn in range(FINAL_TURNS):
        if turn >= FEWEST_TURNS and time.monotonic() > end:
            break
        for name in order if turn % 2 else reversed(order):
            times[name].append(turns[name]())
    return Race(times, order)


def _take(race: Race[Name], name: Name, turns: Mapping[Name, Callable[[], float]]) -> None:
    try:
        race.times[name].append(turns[name]())
    except ToolchainError as error:
        race.failed[name] = error.why
