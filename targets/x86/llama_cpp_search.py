"""llama.cpp's settings for a GGUF file, by racing: prompts and answers apart, since they want different ones.

As `search` does for onnxruntime and OpenVINO, but each turn is a process of its own (llama-bench), and nothing is searched that changes
what is computed.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from pocketport.errors import UsageError
from pocketport.files import sha256_path
from pocketport.profiles.paired import FEWEST_TURNS, median_deviation
from pocketport.targets.configuration import ComponentConfiguration, Configuration, Contender, Rejected
from pocketport.targets.x86.candidates import together
from pocketport.targets.x86.llama_cpp import (
    BENCH,
    DECODE,
    ENGINE,
    GGUF,
    PREFILL,
    LlamaCppSettings,
    bench,
    parse_llama_cpp_settings,
    program,
    program_options,
)
from pocketport.targets.x86.race import TIE, Race, race, take_turns
from pocketport.targets.x86.settings import thread_counts
from pocketport.targets.x86.target import cpu_model, threads

AS_IT_COMES = LlamaCppSettings()
SHARES = {"threads": 0.35, "changes": 0.65, "together": 0.75}  # of the time, when each round is over
ROWS = (64, 128, 256, 1024)  # of a prompt at once; 512 is llama.cpp's own
POLLING = (0, 100)  # llama.cpp's own is 50


@dataclass
class PhaseSearch:
    """The search for one phase.

    Attributes:
        path: llama-bench.
        model: the GGUF file.
        phase: ``prefill`` or ``decode``.
        tokens: of a turn.
        seconds: that it may take.
        version: of llama-bench, once it ran.
        tried: settings that raced.
        rejected: those that did not run.
    """

    path: Path
    model: Path
    phase: str
    tokens: int
    seconds: float
    version: str = ""
    tried: set[LlamaCppSettings] = field(default_factory=set)
    rejected: dict[LlamaCppSettings, str] = field(default_factory=dict)

    def run(self) -> ComponentConfiguration:
        """Search, then measure the chosen settings anew beside llama.cpp as it comes.

        Raises:
            UsageError: the time is too short for a single comparison.
            ToolchainError: llama-bench does not run the model.
        """
        self._start = time.monotonic()
        self._turn(AS_IT_COMES)  # reads the file into the system's cache, and says how long a turn takes
        self._check_time(time.monotonic() - self._start)
        counted = [AS_IT_COMES.model_copy(update={"threads": n}) for n in sorted(thread_counts(), reverse=True)]
        leader = self._race([AS_IT_COMES, *counted], "threads").winner
        changed = self._race([leader, *self._changes(leader)], "changes")
        paid = [
            c for c in changed.times if c != leader and changed.times[c] and changed.ratio(c, leader).value < 1 / TIE
        ]
        chosen = changed.winner
        if len(paid) > 1:
            chosen = self._race([chosen, together(leader, paid)], "together").winner
        return self._measured(chosen)

    def _changes(self, settings: LlamaCppSettings) -> list[LlamaCppSettings]:
        updates: list[dict[str, int | bool]] = [{"polling": value} for value in POLLING]
        updates += [{"bound": True}] if settings.threads != 1 else []
        if self.phase == PREFILL:
            updates += [{"rows": rows} for rows in ROWS if rows < 2 * self.tokens]
        return [settings.model_copy(update=update) for update in updates]

    def _race(self, candidates: Sequence[LlamaCppSettings], name: str) -> Race[LlamaCppSettings]:
        left = self._start + self.seconds * SHARES[name] - time.monotonic()
        entered = [c for c in dict.fromkeys(candidates) if c not in self.rejected]
        done = race({c: partial(self._turn, c) for c in entered}, max(left, 0.0))
        self.tried.update(entered)
        self.rejected |= done.failed
        return done

    def _turn(self, settings: LlamaCppSettings) -> float:
        turn = bench(self.path, self.model, self.phase, self.tokens, settings)
        self.version = turn.version
        return turn.ms

    def _check_time(self, seconds: float) -> None:
        """The final measurement alone takes two contenders FEWEST_TURNS turns each, and so does one comparison before it."""
        needed = 4 * FEWEST_TURNS * seconds
        if needed > self.seconds:
            raise UsageError(
                f"{self.seconds:.2g} s for {self.phase} are too short: one turn takes {seconds:.2g} s",
                where="--budget", fix=f"give at least {2 * needed:.0f} s, or fewer tokens",
            )  # fmt: skip

    def _measured(self, chosen: LlamaCppSettings) -> ComponentConfiguration:
        """Fresh turns; if nothing was gained, llama.cpp as it comes is chosen."""
        names = {AS_IT_COMES: f"{ENGINE} as it comes"} | ({} if chosen == AS_IT_COMES else {chosen: "first choice"})
        left = self._start + self.seconds - time.monotonic()
        done = take_turns({settings: partial(self._turn, settings) for settings in names}, left)
        times = done.times
        chosen = chosen if done.ratio(chosen, AS_IT_COMES).shorter else AS_IT_COMES
        names[chosen] = "chosen" if chosen != AS_IT_COMES else f"chosen: {ENGINE} as it comes"
        order = [chosen, *(s for s in times if s != chosen)]
        return ComponentConfiguration(
            kind=GGUF, artifact=self.model.name, sha256=sha256_path(self.model), settings=chosen.model_dump(),
            tried=len(self.tried), turns=len(times[chosen]),
            contenders=[
                Contender(
                    name=names[s], settings=s.model_dump(), ms=statistics.median(times[s]), mad_ms=median_deviation(times[s]),
                    gain=done.gain(s, chosen),
                )
                for s in order
            ],
            rejected=[Rejected(settings=s.model_dump(), why=why) for s, why in self.rejected.items()],
        )  # fmt: skip


def tune_gguf(
    model: Path, folder: Path | None, prompt: int, answer: int, seconds: float, begin: Callable[[str], None]
) -> Configuration:
    """Search both phases of a GGUF file, each in half of the time.

    Args:
        model: the file.
        folder: of llama.cpp's programs; None: the PATH.
        prompt: tokens of a prompt.
        answer: tokens of an answer.
        seconds: for both.
        begin: is called with each phase that begins.

    Raises:
        UsageError: there is no llama-bench, or the time is too short.
        ToolchainError: llama-bench does not run the model.
    """
    path, components, version = program(BENCH, folder), dict[str, ComponentConfiguration](), ""
    end = time.monotonic() + seconds
    for phase, tokens, share in ((PREFILL, prompt, 2), (DECODE, answer, 1)):
        begin(phase)
        search = PhaseSearch(path, model, phase, tokens, (end - time.monotonic()) / share)
        components[phase], version = search.run(), search.version
    chosen = [parse_llama_cpp_settings(components[phase].settings, phase) for phase in (PREFILL, DECODE)]
    return Configuration(
        processor=cpu_model(), threads=threads(), engines={ENGINE: version}, components=components,
        shapes={PREFILL: [prompt], DECODE: [answer]}, arguments=program_options(*chosen),
    )  # fmt: skip
