"""The command line starts fast: what only lists or refuses imports no heavy library."""

import subprocess
import sys

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


def imported(*arguments: str) -> tuple[int, str]:
    """The exit code of a command in a fresh process, and the last line that it wrote: which heavy libraries it has."""
    program = PROGRAM.format(heavy=HEAVY)
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False, timeout=120
    )
    return done.returncode, done.stderr.splitlines()[-1]


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
    assert imported(*arguments) == (code, "imported")
