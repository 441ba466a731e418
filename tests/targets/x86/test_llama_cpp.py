"""llama.cpp's settings, looked for with a llama-bench whose times are known."""

from pathlib import Path

import pytest

from pocketport.errors import InputError, ToolchainError, UsageError
from pocketport.files import sha256_path
from pocketport.targets.x86.llama_cpp import (
    DECODE,
    PREFILL,
    LlamaCppSettings,
    bench,
    parse_llama_cpp_settings,
    program,
    program_options,
)
from pocketport.targets.x86.llama_cpp_search import tune_gguf

# As it comes 100 ms; one thread spares 30, sleeping threads 10 of a token, 128 rows 20 of a prompt; bound threads are refused.
BENCH = """#!/bin/sh
ms=100
while [ $# -gt 0 ]; do
  case "$1 $2" in
    "-p 0") phase=decode ;;
    "-n 0") phase=prefill ;;
    "--threads 1") ms=$((ms - 30)) ;;
    "--ubatch-size 128") ms=$((ms - 20)) ;;
    "--cpu-strict 1") echo "no such core" >&2; exit 1 ;;
    "--poll 0") polled=10 ;;
  esac
  shift
done
[ $phase = decode ] && ms=$((ms - ${polled:-0}))
echo "[{\\"avg_ns\\": ${ms}000000, \\"build_number\\": 7, \\"build_commit\\": \\"abc\\"}]"
"""


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "llama-bench").write_text(BENCH, encoding="utf-8")
    (folder / "llama-bench").chmod(0o755)
    return folder


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF")
    return path


def test_each_phase_gets_what_is_fastest_for_it(programs: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pocketport.targets.x86.llama_cpp_search.thread_counts", lambda: (1, 2))
    begun: list[str] = []
    found = tune_gguf(model, programs, 512, 64, 6.0, begun.append)
    prefill, decode = (found.components[phase] for phase in (PREFILL, DECODE))
    assert begun == [PREFILL, DECODE]
    assert parse_llama_cpp_settings(prefill.settings, "") == LlamaCppSettings(threads=1, rows=128)
    assert parse_llama_cpp_settings(decode.settings, "") == LlamaCppSettings(threads=1, polling=0)
    assert [(c.name, c.ms) for c in prefill.contenders] == [("chosen", 50.0), ("llama.cpp as it comes", 100.0)]
    gain = decode.contenders[1].gain
    assert gain is not None and gain.value == pytest.approx(100 / 60) and gain.low == gain.high
    assert found.engines == {"llama.cpp": "7 (abc)"} and found.shapes == {PREFILL: [512], DECODE: [64]}
    assert prefill.sha256 == sha256_path(model)
    expected = ["--threads", "1", "--poll", "0", "--threads-batch", "1", "--ubatch-size", "128"]
    assert found.arguments == expected


def test_where_nothing_is_gained_llama_cpp_stays_as_it_comes(
    programs: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (programs / "llama-bench").write_text(BENCH.replace("ms - ", "ms + "), encoding="utf-8")
    monkeypatch.setattr("pocketport.targets.x86.llama_cpp_search.thread_counts", lambda: (1, 2))
    found = tune_gguf(model, programs, 512, 64, 4.0, lambda phase: None)
    assert all(c.settings == LlamaCppSettings().model_dump() for c in found.components.values())
    assert found.components[DECODE].contenders[0].name == "chosen: llama.cpp as it comes"
    assert found.arguments == []


def test_settings_that_the_program_refuses_are_listed(
    programs: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (programs / "llama-bench").write_text(BENCH.replace("threads 1", "threads 9"), encoding="utf-8")
    monkeypatch.setattr("pocketport.targets.x86.llama_cpp_search.thread_counts", lambda: (2,))
    found = tune_gguf(model, programs, 512, 64, 4.0, lambda phase: None)
    (refused,) = found.components[DECODE].rejected
    assert refused.settings["bound"] is True and "no such core" in refused.why


def test_what_does_not_work_is_told(programs: Path, model: Path) -> None:
    with pytest.raises(UsageError, match="llama-quantize is not there"):
        program("llama-quantize", programs)
    with pytest.raises(UsageError, match=r"0\.01 s for prefill are too short"):
        tune_gguf(model, programs, 512, 64, 0.02, lambda phase: None)
    (programs / "llama-bench").write_text("#!/bin/sh\necho 'bad magic' >&2\nexit 1\n", encoding="utf-8")
    with pytest.raises(ToolchainError, match="bad magic"):
        bench(program("llama-bench", programs), model, DECODE, 8, LlamaCppSettings())
    (programs / "llama-bench").write_text("#!/bin/sh\necho '[{}]'\n", encoding="utf-8")
    with pytest.raises(ToolchainError, match="not understood"):
        bench(program("llama-bench", programs), model, DECODE, 8, LlamaCppSettings())
    with pytest.raises(InputError, match="threads"):
        parse_llama_cpp_settings({"engine": "llama.cpp", "threads": 0}, "llama-cpp.json")


def test_prompts_and_tokens_have_options_of_their_own() -> None:
    prefill, decode = LlamaCppSettings(threads=8, rows=256, bound=False), LlamaCppSettings(threads=4, polling=100)
    expected = "--threads 4 --poll 100 --threads-batch 8 --ubatch-size 256 --cpu-strict-batch 0"
    assert " ".join(program_options(prefill, decode)) == expected
