"""The command list is part of the contract: scripts name these."""

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from pocketport.cli import app

COMMANDS = [
    "port", "plan", "inspect", "synth", "ingest", "calibrate", "quantize", "compile", "verify", "profile", "tune", "run", "gate",
    "report", "debug", "compare", "search", "targets", "devices",
]  # fmt: skip


def test_help_lists_the_commands_in_the_order_of_the_road() -> None:
    result = CliRunner().invoke(app, ["--help"])
    assert result.exit_code == 0
    first_words = [words[1] for line in result.output.splitlines() if len(words := line.split()) > 2]
    assert [word for word in first_words if word in COMMANDS] == COMMANDS
    assert list(get_command(app).commands) == COMMANDS  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", COMMANDS)
def test_the_list_says_what_the_command_says(name: str) -> None:
    listed = get_command(app).commands[name]  # type: ignore[attr-defined]
    command = listed.make_context(name, [], resilient_parsing=True).command
    assert command.help.partition("\n\n")[0].replace("\n", " ") == listed.help
