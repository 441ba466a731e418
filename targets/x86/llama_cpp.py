"""llama.cpp's programs on this machine: what can be set in them, and one timed turn of a phase.

The programs are the user's own build, found in a folder or on the PATH: there is no wheel of them.
"""

import json
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pocketport.errors import InputError, ToolchainError, UsageError
from pocketport.targets.x86.settings import MOST_THREADS

GGUF: Final = "gguf"
PREFILL, DECODE = "prefill", "decode"
PHASES: Mapping[str, Sequence[str]] = {PREFILL: ("-n", "0", "-p"), DECODE: ("-p", "0", "-n")}
"""Phase → what llama-bench is told before the number of tokens."""
ENGINE: Final = "llama.cpp"
BENCH, CHAT = "llama-bench", "llama-mtmd-cli"
MOST_SECONDS = 1200.0  # of one call
SHOWN_MESSAGES = 400  # characters of what a program said last


class LlamaCppSettings(BaseModel):
    """llama.cpp's processor backend, for one phase. None: as it comes.

    Attributes:
        threads: of one op.
        polling: how long threads without work look for some before they sleep, 0 (not at all) to 100.
        bound: whether each thread is bound to a processor of its own.
        rows: tokens of a prompt that are computed at once (``--ubatch-size``).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    engine: Literal["llama.cpp"] = ENGINE
    threads: int | None = Field(default=None, ge=1, le=MOST_THREADS)
    polling: int | None = Field(default=None, ge=0, le=100)
    bound: bool | None = None
    rows: int | None = Field(default=None, ge=1)

    def options(self, suffix: str = "") -> list[str]:
        """For the command line.

        Args:
            suffix: of the long names; the programs call a prompt's settings ``--poll-batch`` beside a token's ``--poll``.
        """
        named = {f"--threads{suffix}": self.threads, f"--poll{suffix}": self.polling, "--ubatch-size": self.rows}
        named |= {f"--cpu-strict{suffix}": None if self.bound is None else int(self.bound)}
        return [text for name, value in named.items() if value is not None for text in (name, str(value))]


def parse_llama_cpp_settings(entries: Mapping[str, Any], where: str) -> LlamaCppSettings:
    """Settings of a document; InputError where they are none of llama.cpp's."""
    try:
        return LlamaCppSettings.model_validate(dict(entries))
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise InputError(f"{field}: {first['msg']}", where=where, fix="run `pocketport tune` again") from error


def program_options(prefill: LlamaCppSettings, decode: LlamaCppSettings) -> list[str]:
    """What llama-server, llama-cli and llama-mtmd-cli are told to compute prompts and tokens with these settings."""
    return [*decode.options(), *prefill.options("-batch")]


def program(name: str, folder: Path | None) -> Path:
    """A program of llama.cpp.

    Args:
        name: e.g. ``llama-bench``.
        folder: where it lies; None: on the PATH.

    Raises:
        UsageError: it is not there.
    """
    found = shutil.which(name, path=None if folder is None else str(folder))
    if found is None:
        raise UsageError(
            f"{name} is not {'on the PATH' if folder is None else 'there'}", where="--llama-cpp" if folder is None else str(folder),
            fix="build llama.cpp and say --llama-cpp with the folder of its programs, e.g. llama.cpp/build/bin",
        )  # fmt: skip
    return Path(found).resolve()


@dataclass(frozen=True)
class Turn:
    """One timed call of llama-bench.

    Attributes:
        ms: of the phase, without loading the model and behind one that warms up.
        version: of the program, as it says itself.
    """

    ms: float
    version: str


def bench(path: Path, model: Path, phase: str, tokens: int, settings: LlamaCppSettings) -> Turn:
    """Time one phase once.

    Args:
        path: llama-bench.
        model: a GGUF file; of several parts, the first.
        phase: of PHASES.
        tokens: of the prompt, or of the answer.
        settings: of this phase.

    Raises:
        ToolchainError: the program fails, or takes longer than MOST_SECONDS.
    """
    command = [str(path), "-m", str(model), *PHASES[phase], str(tokens), "-r", "1", "-o", "json", *settings.options()]
    try:
        done = subprocess.run(command, capture_output=True, timeout=MOST_SECONDS, check=True)
        (entry,) = json.loads(done.stdout)
        return Turn(float(entry["avg_ns"]) / 1e6, f"{entry['build_number']} ({entry['build_commit']})")
    except subprocess.CalledProcessError as error:
        why = error.stderr.decode(errors="replace").strip()[-SHOWN_MESSAGES:] or f"exit code {error.returncode}"
    except subprocess.TimeoutExpired:
        why = f"no result within {MOST_SECONDS:.0f} s"
    except (ValueError, KeyError, TypeError) as error:
        why = f"what it prints is not understood: {type(error).__name__}: {error}"
    raise ToolchainError(f"{BENCH}: {why}", where=str(model), fix=f"try `{' '.join(command)}`")
