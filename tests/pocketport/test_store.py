import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pocketport.store import Store

CODE = ("compress",)


def test_same_inputs_are_made_once(tmp_path: Path) -> None:
    store = Store(tmp_path)
    calls = []

    def produce(directory: Path) -> None:
        calls.append(directory)
        (directory / "a.txt").write_text("made")

    first = store.run("stage", {"x": 1}, produce, code=CODE)
    second = store.run("stage", {"x": 1}, produce, code=CODE)
    assert len(calls) == 1
    assert (first.cached, second.cached) == (False, True)
    assert first.digest == second.digest
    assert (second.path / "a.txt").read_text() == "made"


def test_other_inputs_or_code_are_another_stage(tmp_path: Path) -> None:
    store = Store(tmp_path)

    def produce(directory: Path) -> None:
        (directory / "a.txt").write_text("made")

    keys = {
        store.run("stage", {"x": 1}, produce, code=CODE).key,
        store.run("stage", {"x": 2}, produce, code=CODE).key,
        store.run("stage", {"x": 1}, produce, code=("calibration",)).key,
        store.run("stage", {"x": 1}, produce, code=CODE, packages=("numpy",)).key,
    }
    assert len(keys) == 4


def test_a_failed_stage_leaves_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path)

    def produce(directory: Path) -> None:
        (directory / "half.txt").write_text("half")
        raise RuntimeError("vendor crashed")

    with pytest.raises(RuntimeError, match="vendor crashed"):
        store.run("stage", {}, produce, code=CODE)
    assert not [p for p in (tmp_path / "stage").iterdir() if p.suffix != ".lock"]


def test_a_killed_stage_is_made_again(tmp_path: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; from pocketport.store import Store\n"
        "def produce(d):\n"
        "    (d / 'half.txt').write_text('half'); print('started', flush=True); time.sleep(60)\n"
        f"Store(Path({str(tmp_path)!r})).run('stage', {{}}, produce, code=('compress',))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"started\n"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    start = time.monotonic()

    def produce(directory: Path) -> None:
        (directory / "whole.txt").write_text("whole")

    result = Store(tmp_path).run("stage", {}, produce, code=CODE)
    assert not result.cached
    assert [p.name for p in result.path.iterdir()] == ["whole.txt"]
    assert time.monotonic() - start < 30
    assert not list((tmp_path / "stage").glob(".*"))
