"""The documentation holds: commands parse, links lead somewhere, YAML loads, Python runs."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from typer.main import get_command

from pocketport.cli import app
from pocketport.compress.recipe import load_recipe
from pocketport.profiles.budget import load_budget
from tests.pocketport.conftest import perceptron

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
NAMES = [page.relative_to(ROOT).as_posix() for page in PAGES]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^]\n]+\]\(([^)\s]+)\)")


def blocks(page: Path, language: str) -> list[str]:
    """The page's fenced blocks of one language."""
    return [body for kind, body in FENCE.findall(page.read_text(encoding="utf-8")) if kind == language]


def commands(program: str) -> Iterator[tuple[str, list[str]]]:
    """Every ``$ program …`` of the pages' console blocks: where it is, and its arguments."""
    for page, name in zip(PAGES, NAMES, strict=True):
        for body in blocks(page, "console"):
            for line in body.replace("\\\n", " ").splitlines():
                if line.startswith(f"$ {program} "):
                    yield f"{name}: {line}", shlex.split(line[2:], comments=True)[1:]


@pytest.mark.parametrize(("where", "arguments"), commands("pocketport"))
def test_commands_parse(where: str, arguments: list[str]) -> None:
    group = get_command(app)
    command = group.commands.get(arguments[0])  # type: ignore[attr-defined]
    assert command is not None, where
    command.make_context(arguments[0], arguments[1:])  # raises for an option that does not exist


@pytest.mark.parametrize(("where", "arguments"), commands("make"))
def test_make_targets_exist(where: str, arguments: list[str]) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert all(re.search(rf"^{re.escape(target)}:", makefile, re.MULTILINE) for target in arguments), where


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_lead_somewhere(page: Path) -> None:
    links = [link.partition("#")[0] for link in LINK.findall(page.read_text(encoding="utf-8")) if ":" not in link]
    assert [link for link in links if link and not (page.parent / link).exists()] == []


@pytest.mark.parametrize(("name", "load"), [("budgets.md", load_budget), ("porting.md", load_recipe)])
def test_yaml_loads(name: str, load: object, tmp_path: Path) -> None:
    bodies = blocks(ROOT / "docs" / name, "yaml")
    assert bodies and callable(load)
    for body in bodies:
        path = tmp_path / "example.yaml"
        path.write_text(body, encoding="utf-8")
        load(path if name == "budgets.md" else str(path))


def test_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("POCKETPORT_CACHE", str(tmp_path / "cache"))
    perceptron(tmp_path / "model.onnx")
    samples = np.random.default_rng(1).standard_normal((24, 1, 16)).astype(np.float32)
    np.savez(tmp_path / "samples.npz", x=samples)
    bodies = blocks(ROOT / "docs" / "python-api.md", "python")
    assert bodies
    for body in bodies:
        exec(compile(body, "docs/python-api.md", "exec"), {})
    assert (tmp_path / "out" / "model" / "run.json").is_file()
