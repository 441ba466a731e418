"""Kill a port with SIGKILL at random moments, resume it, and compare every byte with an uninterrupted run.

``python benchmarks/kill_and_resume.py [SOURCE] [--target T ... | --format F ... --recipe gptq] [--kills 5] [--seed 0]``

Two stores that share nothing. The moments are drawn over the uninterrupted run's duration; each kill takes the whole process
group, vendor compilers included. Compared: every pivot, artifact and checkpoint in the run's directory.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from fnmatch import fnmatch
from pathlib import Path

from pocketport.commands.console import out, table
from pocketport.files import sha256_path

TARGETS = ["qualcomm/sm8650", "apple/a17-pro", "mediatek/mt6989", "x86"]
REPORTS = ("run.json", "report.html", "request.json", "formats.json", "timing-*.json")  # they hold times


def start(arguments: list[str], run: Path, cache: Path) -> subprocess.Popen[bytes]:
    """One `pocketport port` in its own process group."""
    command = [
        sys.executable,
        "-m",
        "pocketport",
        "port",
        *arguments,
        "--out",
        str(run),
        "--cache",
        str(cache),
        "--json",
    ]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)


def digests(run: Path) -> dict[str, str]:
    """Relative path → SHA-256 of every pivot, artifact and checkpoint."""
    files = (p for p in sorted(run.rglob("*")) if p.is_file() and not any(fnmatch(p.name, r) for r in REPORTS))
    return {p.relative_to(run).as_posix(): sha256_path(p) for p in files}


def finished(cache: Path) -> str:
    """How far a run came: stages, and parts of those that go on where they stopped."""
    stages, parts = len(list(cache.glob("*/*.json"))), len(list(cache.glob("*/*.partial/*.entries.json")))
    return f"{stages} stages" + (f", {parts} layers" if parts else "")


def main() -> None:
    """Run, kill, resume, compare; exit 1 when a byte differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", nargs="?", default="reference")
    parser.add_argument("--target", action="append")
    parser.add_argument("--format", action="append")
    parser.add_argument("--recipe", default="default")
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    arguments = [options.source, "--recipe", options.recipe, "--calibration-samples", "16"]
    arguments += ["--task-samples", "8", "--emulated-task-samples", "2"]
    for name in options.format or ():
        arguments += ["--format", name]
    for target in options.target or (() if options.format else TARGETS):
        arguments += ["--target", target]
    moments = random.Random(options.seed)
    with tempfile.TemporaryDirectory(prefix="pocketport-kill-") as folder:
        root = Path(folder)
        began = time.monotonic()
        if start(arguments, root / "whole", root / "cache-a").wait() not in (0, 1):
            raise SystemExit("the uninterrupted run failed")
        seconds = time.monotonic() - began
        shown = table(
            f"{options.source}: uninterrupted in {seconds:.0f} s", "run", "killed after", "finished", right=(1, 2)
        )
        for index in range(options.kills):
            process = start(arguments, root / "killed", root / "cache-b")
            pause = moments.uniform(0.02, 0.45) * seconds
            time.sleep(pause)
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            shown.add_row(f"kill {index + 1}", f"{pause:.1f} s", finished(root / "cache-b"))
        process = start(arguments, root / "killed", root / "cache-b")
        if process.wait() not in (0, 1):
            raise SystemExit("the resumed run failed")
        whole, resumed = digests(root / "whole"), digests(root / "killed")
        differing = sorted(name for name in whole.keys() | resumed.keys() if whole.get(name) != resumed.get(name))
        shown.add_row("resumed", "", finished(root / "cache-b"))
        out.print(shown)
        out.print(
            f"{len(whole)} files compared, {len(differing)} differ{': ' + ', '.join(differing) if differing else ''}"
        )
        raise SystemExit(1 if differing else 0)


if __name__ == "__main__":
    main()
