"""The command line starts fast: what only lists or refuses imports no heavy library."""

import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("torch", "onnx", "onnx_ir", "onnxruntime", "matplotlib", "sympy", "transformers")
PROGRAM = """
import sys
from pocketport.cli import main
try:
    main()
finally:
    print("imported", *(name for name in {heavy!r} if name in sys.modules), file=sys.stderr)
"""


def imported(*arguments: object) -> tuple[int, set[str]]:
    """The exit code of a command in a fresh process, and which heavy libraries it has in the end."""
    program = PROGRAM.format(heavy=HEAVY)
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)], capture_output=True, text=True, check=False, timeout=120
    )
    marker, *names = done.stderr.splitlines()[-1].split()
    assert marker == "imported"
    return done.returncode, set(names)


@pytest.mark.parametrize(
    ("code", "arguments"),
    [
        (0, ["--help"]),
        (0, ["--version"]),
        (2, []),
        (2, ["--hlep"]),
        (2, ["prot"]),
        (0, ["devices", "--help"]),
        (0, ["devices", "list"]),
        (0, ["devices", "show", "galaxy-s25"]),
        (2, ["devices", "show", "galaxy"]),
        (0, ["devices", "compare", "galaxy-s25", "galaxy-s24"]),
    ],
    ids=str,
)
def test_nothing_heavy_is_imported(code: int, arguments: list[str]) -> None:
    assert imported(*arguments) == (code, set())


@pytest.mark.parametrize(
    ("code", "arguments"),
    [
        (0, ["port", "--help"]),
        (2, ["port", "perceptron.onnx"]),
        (0, ["targets"]),
        (0, ["inspect", "perceptron.onnx"]),
        (0, ["profile", "perceptron.onnx", "--device", "galaxy-s25", "--quick"]),
        (2, ["gate", ".", "--budget", "default"]),
        (2, ["run", ".", "--image", "picture.png", "--prompt", "What?"]),
    ],
    ids=str,
)
def test_what_reads_models_does_without_torch(
    code: int, arguments: list[str], model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(model.parent)
    found, names = imported(*arguments)
    assert (found, names & {"torch", "matplotlib", "transformers"}) == (code, set())
