"""The command list is part of the contract: scripts name these."""

import pytest
from rich.text import Text
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


@pytest.mark.parametrize("name", [*COMMANDS, *(f"devices {name}" for name in ("list", "show", "compare", "fit"))])
def test_every_parameter_is_explained_at_80_columns(name: str) -> None:
    shown = CliRunner(env={"COLUMNS": "80"}).invoke(app, [*name.split(), "--help"])
    assert shown.exit_code == 0
    assert max(map(len, shown.output.splitlines())) <= 80
    first, *others = name.split()
    command = get_command(app).commands[first].make_context(first, [], resilient_parsing=True).command  # type: ignore[attr-defined]
    for part in others:
        command = command.commands[part]
    for parameter in command.params:
        assert parameter.help, parameter.name
        assert Text.from_markup(parameter.help).plain == parameter.help.replace("\\[", "["), "taken for a style"
        assert all(option in shown.output.split() for option in parameter.opts if option.startswith("--"))
