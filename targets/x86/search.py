"""The search: candidates race in processes of their own; the best is measured anew beside every engine's defaults."""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import version

import psutil

from pocketport.errors import ToolchainError, UsageError
from pocketport.files import sha256_path
from pocketport.profiles.paired import FEWEST_TURNS, median_deviation
from pocketport.targets.configuration import (
    ComponentConfiguration,
    Configuration,
    Contender,
    OpTime,
    Rejected,
)
from pocketport.targets.contract import TuneJob
from pocketport.targets.x86.candidates import changes, first_round, frugal, kind_of, together
from pocketport.targets.x86.measure import arbitrary_feeds
from pocketport.targets.x86.pool import LIMITS, Pool
from pocketport.targets.x86.race import TIE, Race, race, take_turns
from pocketport.targets.x86.settings import NAMES, ONNX, Settings, engine_defaults, own_defaults
from pocketport.targets.x86.target import cpu_model, threads
from pocketport.targets.x86.trial import TURN_MS, Expected, Opened
from pocketport.workers import Worker, call_in_worker

SHARES = {
    "threads": 0.4,
    "changes": 0.65,
    "together": 0.75,
}  # of the time behind the reference, when each round is over
OPENING = 0.6  # of a round: who could not be opened by then is not tried
FAR = 1.5  # an engine whose best takes this many times as long is not looked into further
LESS_MEMORY = 0.95  # of the peak: what a frugal variant must save
FIRST_CHOICE = "first choice of the search"
SHOWN_OPS = 12
SPARE_MEMORY = 1.5  # of the last candidate's peak must be free to open another


@dataclass
class Search:
    """The search for one component.

    Attributes:
        job: what is looked for.
        pool: of workers.
        seconds: that it may take.
        capabilities: precisions of OpenVINO here.
        opened: candidates that run, with their workers.
        seen: all that were ever opened, right ones.
        rejected: those that are no candidates.
    """

    job: TuneJob
    pool: Pool
    seconds: float
    capabilities: Sequence[str]
    opened: dict[Settings, Worker] = field(default_factory=dict)
    seen: dict[Settings, Opened] = field(default_factory=dict)
    rejected: dict[Settings, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._start = time.monotonic()
        self._last_peak = 0
        self._kinds = tuple(self.job.artifacts)
        feeds = self.job.feeds
        self._feeds = dict(arbitrary_feeds(self.job.pivot, self.job.shapes) if feeds is None else feeds)
        where = f"x86: {self.job.component} op by op"
        self._expected: Expected = call_in_worker(
            "pocketport.targets.x86.trial:expected_of", self.job.pivot, self._feeds, label=where, limits=LIMITS
        )
        self._racing = time.monotonic()

    def run(self) -> ComponentConfiguration:
        """Search, then measure.

        Raises:
            UsageError: the time is too short for a single comparison.
            ToolchainError: no engine runs the component.
        """
        try:
            chosen = self._chosen()
        finally:
            for worker in self.opened.values():
                self.pool.give(worker)
            self.opened.clear()
        return self._measured(chosen)

    def _chosen(self) -> Settings:
        leaders = self._leaders(self._race(first_round(self._kinds), "threads"))
        again = [changed for settings in leaders for changed in changes(settings, self.capabilities)]
        changed = self._race([*leaders, *again], "changes")
        joined = []
        for settings in leaders:
            own = [c for c in changes(settings, self.capabilities) if changed.times.get(c)]
            paid = [c for c in own if changed.ratio(c, settings).value < 1 / TIE]
            joined += [together(settings, paid)] if len(paid) > 1 else []
        if not joined:
            return changed.winner
        return self._race([changed.winner, *joined], "together").winner

    def _leaders(self, done: Race[Settings]) -> list[Settings]:
        """The winner, and the best of every other engine that is not far behind."""
        found = [done.winner]
        for kind in self._kinds:
            ran = (s for s, times in done.times.items() if times and s not in done.failed)
            of_kind = [s for s in ran if kind_of(s, self._kinds) == kind]
            if of_kind and not any(kind_of(s, self._kinds) == kind for s in found):
                best = min(of_kind, key=lambda s: done.ratio(s, done.winner).value)
                found += [best] if done.ratio(best, done.winner).value < FAR else []
        return found

    def _race(self, candidates: Sequence[Settings], name: str) -> Race[Settings]:
        """Open the candidates and let them race until the round's share of the time is over."""
        left = self._start + self.seconds - self._racing
        begin, end = time.monotonic(), self._racing + left * SHARES[name]
        opening = begin + OPENING * (end - begin)
        self.pool.fill(len(set(candidates) - set(self.opened)))
        entered = [s for s in dict.fromkeys(candidates) if self._opened(s, opening)]
        if not entered:
            why = "; ".join(dict.fromkeys(self.rejected.values()))
            raise ToolchainError(f"no engine runs it: {why}", where=self.job.component, fix="give another artifact")
        self._check_time(min((self.seen[s] for s in entered), key=lambda opened: opened.run_ms))
        done = race({s: self._turn(s) for s in entered}, max(end - time.monotonic(), 0.0))
        self.rejected.update(done.failed)
        for settings in set(self.opened) - {*done.running, *self._leaders(done)}:
            self.pool.give(self.opened.pop(settings))
        return done

    def _turn(self, settings: Settings) -> Callable[[], float]:
        return lambda: float(self.opened[settings].call("turn"))

    def _opened(self, settings: Settings, until: float) -> bool:
        """Open a candidate, unless the time is over or the memory is full; whether it is right and runs."""
        if settings in self.opened or settings in self.rejected:
            return settings in self.opened
        enough = len(self.opened) >= len(self._kinds)  # every engine's defaults are tried however short the time is
        if enough and time.monotonic() > until:
            return False
        if enough and psutil.virtual_memory().available < SPARE_MEMORY * self._last_peak:
            return False
        worker = self.pool.take()
        try:
            opened = self._open(worker, settings)
        except ToolchainError as error:
            self.rejected[settings] = error.why.splitlines()[0]
            self.pool.give(worker)
            return False
        if opened.fidelity_db < self._expected.least_db:
            told = f"{opened.fidelity_db:.1f} dB, {self._expected.least_db:.1f} expected"
            self.rejected[settings] = f"it computes something else: {told}"
            self.pool.give(worker)
            return False
        self._last_peak = worker.peak_bytes
        self.opened[settings], self.seen[settings] = worker, opened
        return True

    def _open(self, worker: Worker, settings: Settings) -> Opened:
        kind = kind_of(settings, self._kinds)
        shapes = {name: list(shape) for name, shape in self.job.shapes.items()}
        found: Opened = worker.call(
            "open", kind, self.job.artifacts[kind], settings, shapes, self._feeds, self._expected
        )
        return found

    def _check_time(self, opened: Opened) -> None:
        """The final measurement alone takes 4 contenders FEWEST_TURNS turns each; UsageError where there is no time for it."""
        turn = opened.run_ms + max(opened.run_ms, TURN_MS)
        needed = 4 * FEWEST_TURNS * turn / 1e3
        if needed > self.seconds:
            raise UsageError(
                f"{self.seconds:.2g} s are too short: one run takes {opened.run_ms:.2g} ms",
                where=f"--budget, {self.job.component}", fix=f"give at least {needed:.1f} s a component",
            )  # fmt: skip

    def _measured(self, chosen: Settings) -> ComponentConfiguration:
        """The final measurement: fresh processes, fresh turns; who is surely faster than the chosen one replaces it."""
        names = {chosen: FIRST_CHOICE} | {settings: "with less memory" for settings in frugal(chosen)}
        names |= {own_defaults(kind_of(chosen, self._kinds)): "Pocketport's defaults"}
        names |= {engine_defaults(kind): f"{NAMES[kind]} as it comes" for kind in self._kinds}
        with self._fresh(names) as (workers, opened):
            if chosen not in workers:
                why = self.rejected[chosen]
                raise ToolchainError(
                    f"it ran before, now it does not: {why}", where=self.job.component, fix="try again"
                )
            left = self._start + self.seconds - time.monotonic()
            done = take_turns({s: partial(worker.call, "turn") for s, worker in workers.items()}, left)
            peaks = {settings: worker.call("peak") for settings, worker in workers.items()}
        times = done.times
        right = [s for s in times if opened[s].fidelity_db >= self._expected.least_db]
        chosen = self._final(chosen, done, right, peaks)
        names[chosen] = "chosen" if names[chosen] == FIRST_CHOICE else f"chosen: {names[chosen]}"
        order = [chosen, *(s for s in times if s != chosen)]
        kind = kind_of(chosen, self._kinds)
        artifact = self.job.artifacts[kind]
        shapes = {name: list(shape) for name, shape in self.job.shapes.items()}
        ops = call_in_worker(
            "pocketport.targets.x86.trial:op_times", kind, artifact, chosen, shapes, self._feeds,
            label=f"x86: {self.job.component} op times", limits=LIMITS,
        )  # fmt: skip
        return ComponentConfiguration(
            kind=kind,
            artifact=str(artifact),
            sha256=sha256_path(artifact),
            settings=chosen.model_dump(),
            tried=len(self.seen) + len(self.rejected),
            turns=len(times[chosen]),
            least_db=self._expected.least_db,
            contenders=[
                Contender(
                    name=names[s], settings=s.model_dump(), ms=statistics.median(times[s]),
                    mad_ms=median_deviation(times[s]), gain=done.gain(s, chosen), fidelity_db=opened[s].fidelity_db,
                    cold_ms=opened[s].cold_ms, peak_bytes=peaks[s],
                )
                for s in order
            ],
            rejected=[Rejected(settings=s.model_dump(), why=why) for s, why in self.rejected.items()],
            ops=[OpTime(op=op, count=count, ms=ms) for op, count, ms in ops[:SHOWN_OPS]],
        )  # fmt: skip

    @contextmanager
    def _fresh(self, names: Mapping[Settings, str]) -> Iterator[tuple[dict[Settings, Worker], dict[Settings, Opened]]]:
        """A process for each of these settings that runs at all, wrong ones too: an engine's defaults may be wrong."""
        workers: dict[Settings, Worker] = {}
        opened: dict[Settings, Opened] = {}
        self.pool.fill_fresh(len(names))
        fresh: list[Worker] = []
        try:
            for _ in names:  # all of them first: cold starts are measured while nothing else starts
                fresh.append(self.pool.fresh())
            for settings, worker in zip(names, fresh, strict=True):
                try:
                    opened[settings] = self._open(worker, settings)
                    workers[settings] = worker
                except ToolchainError as error:
                    self.rejected[settings] = error.why.splitlines()[0]
            yield workers, opened
        finally:
            for worker in fresh:
                worker.close()

    def _final(
        self,
        chosen: Settings,
        done: Race[Settings],
        right: Sequence[Settings],
        peaks: Mapping[Settings, int | None],
    ) -> Settings:
        """The chosen settings, unless others turn out to be surely faster, or as fast with less memory."""
        faster = [s for s in right if done.ratio(s, chosen).shorter]
        best = min(faster, key=lambda s: done.ratio(s, chosen).value, default=chosen)
        if best is chosen:
            peak = peaks[chosen]
            thrifty = [
                s for s in frugal(chosen)
                if s in right and done.ratio(s, chosen).value <= TIE and not done.ratio(s, chosen).longer
                and peak is not None and (peaks[s] or peak) < LESS_MEMORY * peak
            ]  # fmt: skip
            best = min(thrifty, key=lambda s: peaks[s] or 0, default=chosen)
        return best


def tune(jobs: Sequence[TuneJob], seconds: float, done: Callable[[str], None], *, openvino: bool) -> Configuration:
    """Every component in its share of the time.

    Args:
        jobs: the components.
        seconds: for all of them.
        done: is called with each that is finished.
        openvino: whether it is installed; without it only onnxruntime is looked at.
    """
    pool, found = Pool(), dict[str, ComponentConfiguration]()
    capabilities = call_in_worker(f"{__name__}:openvino_capabilities", label="x86: OpenVINO") if openvino else []
    end = time.monotonic() + seconds
    try:
        for index, job in enumerate(jobs):
            share = max(end - time.monotonic(), 0.0) / (len(jobs) - index)
            kinds = {kind: path for kind, path in job.artifacts.items() if openvino or kind == ONNX}
            found[job.component] = Search(replace(job, artifacts=kinds), pool, share, capabilities).run()
            done(job.component)
    finally:
        pool.close()
    return Configuration(processor=cpu_model(), threads=threads(), engines=engines(openvino=openvino), components=found)


def engines(*, openvino: bool) -> dict[str, str]:
    """The installed engines and their versions."""
    return {name: version(name) for name in ("onnxruntime", *(["openvino"] if openvino else []))}


def openvino_capabilities() -> list[str]:
    """Precisions that OpenVINO's CPU plugin computes in on this processor; called in a worker."""
    import openvino

    return [str(name) for name in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")]
