import subprocess
import sys
import time
from pathlib import Path

import pytest

from pocketport.errors import ToolchainError, UsageError
from pocketport.workers import Limits, Worker, call_in_worker


def test_result_and_typed_errors_come_back() -> None:
    assert call_in_worker("math:hypot", 3.0, 4.0, label="hypot") == 5.0
    with pytest.raises(UsageError) as caught:
        call_in_worker("pocketport.targets.contract:Target.parse", "a/b/c", label="parse")
    assert caught.value.where == "--target"


def test_a_crash_is_a_toolchain_error_and_costs_only_its_process() -> None:
    with pytest.raises(ToolchainError, match="exit code -6"):
        call_in_worker("os:abort", label="vendor compiler")


def test_a_hang_is_ended() -> None:
    start = time.monotonic()
    with pytest.raises(ToolchainError, match="no answer within 1 s"):
        call_in_worker("time:sleep", 60, label="vendor compiler", limits=Limits(seconds=1))
    assert time.monotonic() - start < 20


def test_a_leak_is_ended() -> None:
    with pytest.raises(ToolchainError, match="GiB"):
        call_in_worker("numpy:ones", 400_000_000, label="vendor compiler", limits=Limits(memory_bytes=300 << 20))


def test_a_worker_keeps_its_object() -> None:
    with Worker("collections:Counter", "aab", label="counter") as worker:
        assert worker.call("most_common", 1) == [("a", 2)]
        worker.call("update", "bbb")
        assert worker.call("most_common", 1) == [("b", 4)]


def test_a_worker_does_not_import_the_parents_main_module(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "from pocketport.workers import call_in_worker\n"
        "if __name__ == '__mp_main__':\n    raise SystemExit('imported again')\n"
        "if __name__ == '__main__':\n    print(call_in_worker('math:hypot', 3.0, 4.0, label='hypot'), __name__)\n"
    )
    done = subprocess.run([sys.executable, program], capture_output=True, text=True, check=False)
    assert done.stdout == "5.0 __main__\n", done.stderr
