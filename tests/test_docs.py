"""Every Python block of the README and of `docs/` runs, page by page, in an empty folder; a stand-in is the Hub."""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from markdown_it import MarkdownIt
from typer.main import get_command

import peft_space
from peft_space.cli import app
from tests.hub.server import Hub

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def python_blocks(page: Path) -> list[str]:
    """The page's blocks, each moved down to its own line so that a traceback names the line of the page."""
    fences = [token for token in MarkdownIt().parse(page.read_text()) if token.type == "fence"]
    return ["\n" * (fence.map[0] + 1) + fence.content for fence in fences if fence.info.split()[:1] == ["python"]]


@pytest.mark.slow
@pytest.mark.parametrize("page", [pytest.param(page, id=str(page.relative_to(ROOT))) for page in PAGES])
def test_python_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hub: Hub) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "__main__"}
    for block in python_blocks(page):
        exec(compile(block, str(page), "exec"), names)


def test_the_commands_of_the_readme_are_one_line_each() -> None:
    fences = [token for token in MarkdownIt().parse((ROOT / "README.md").read_text()) if token.type == "fence"]
    commands = [fence.content for fence in fences if ".venv/bin/" in fence.content]
    assert [command.count("\n") for command in commands[:2]] == [1, 1]
    assert commands[0].rstrip().endswith(".venv/bin/peft-space demo")
    assert commands[1].rstrip().endswith(".venv/bin/pytest")


def commands() -> list[tuple[str, list[str]]]:
    """Every command line in a block of the README or `docs/`: its page and its words, from the program on."""
    found = []
    for page in PAGES:
        fences = [token for token in MarkdownIt().parse(page.read_text()) if token.type in ("fence", "code_block")]
        for line in "\n".join(fence.content for fence in fences).replace("\\\n", " ").splitlines():
            for program in re.findall(r"(?:peft-space|-m (?:peft_space|tests)\.[\w.]+) .*|-m tests\.[\w.]+", line):
                # a job script may have the whole of it between quotes
                program = program.split(" && ")[0].removesuffix("'" * (program.count("'") % 2))
                words = shlex.split(program, comments=True)
                if len(words) > 1:
                    found.append((page.name, words))
    return found


@pytest.mark.parametrize("words", [pytest.param(words, id=f"{page}: {' '.join(words)}") for page, words in commands()])
def test_every_command_line_is_one_that_there_is(words: list[str], tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    Path("request.yaml").write_text("model: MODEL\nconcept: NAME\npublic-images: FOLDER\n")
    if words[0] == "-m" and words[1] != "peft_space.cli":
        assert importlib.util.find_spec(words[1]) is not None
        return
    name, *rest = words[1:] if words[0] != "-m" else words[2:]
    get_command(app).commands[name].make_context(name, rest)


def test_everything_that_is_public_is_in_the_reference() -> None:
    told = re.findall(r"^::: peft_space\.(?:\w+\.)*(\w+)$", (ROOT / "docs" / "api.md").read_text(), flags=re.MULTILINE)
    assert sorted(told) == sorted(peft_space.__all__)


def test_every_page_is_in_the_sites_navigation() -> None:
    linked = re.findall(r"^  - .+: (\S+\.md)$", (ROOT / ".mkdocs.yml").read_text(), flags=re.MULTILINE)
    assert sorted(linked) == sorted(str(page.relative_to(ROOT / "docs")) for page in PAGES[1:])
