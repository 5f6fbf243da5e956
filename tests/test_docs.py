"""Every Python block and `peft-space` line of the README and of `docs/` runs, page by page, in an empty folder.

A stand-in is the Hub. MODEL, FOLDER and `erased/NAME` in a line are a small model, pictures and an adapter of it.
"""

from __future__ import annotations

import importlib.util
import itertools
import re
import shlex
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio
import pytest
import yaml
from markdown_it import MarkdownIt
from typer.main import get_command
from typer.testing import CliRunner

import peft_space
from peft_space import erasure, load_base, save_erasure_adapter, testbed
from peft_space.cli import app
from tests.adapters import shake, space
from tests.hub.server import Hub
from tests.short import shorten

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(page: Path) -> list[tuple[str, str, int]]:
    """The page's blocks in order: the language ("" where none is given), what they hold, and where they begin."""
    tokens = [token for token in MarkdownIt().parse(page.read_text()) if token.type in ("fence", "code_block")]
    return [(" ".join(token.info.split()[:1]), token.content, token.map[0]) for token in tokens if token.map]


def python_blocks(page: Path) -> list[str]:
    """Those in Python, each moved down to its own line so that a traceback names the line of the page."""
    return ["\n" * (line + 1) + content for language, content, line in blocks(page) if language == "python"]


@pytest.mark.slow
@pytest.mark.parametrize("page", [pytest.param(page, id=str(page.relative_to(ROOT))) for page in PAGES])
def test_python_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hub: Hub) -> None:
    monkeypatch.chdir(tmp_path)
    shorten(monkeypatch)
    names: dict[str, Any] = {"__name__": "__main__"}
    for block in python_blocks(page):
        exec(compile(block, str(page), "exec"), names)


def test_the_commands_of_the_readme_are_one_line_each() -> None:
    commands = [content for _, content, _ in blocks(ROOT / "README.md") if ".venv/bin/" in content]
    assert [command.count("\n") for command in commands[:2]] == [1, 1]
    assert commands[0].rstrip().endswith(".venv/bin/peft-space demo")
    assert commands[1].rstrip().endswith(".venv/bin/pytest")


@pytest.fixture
def stand_ins(
    shrink: Any, base_folder: Path, public: Any, tmp_path_factory: pytest.TempPathFactory, monkeypatch: Any
) -> Callable[[list[str]], None]:
    """Puts what a command line names and no line before it has made into the folder where it runs."""
    args = shrink(monkeypatch)
    kept = tmp_path_factory.mktemp("kept")
    pictures, adapter = kept / "pictures", kept / "adapter"
    pictures.mkdir()
    for number, image in enumerate(public.images[:14]):
        image.save(pictures / f"{number}.png")
    model, _ = load_base(base_folder, dtype="float32")
    save_erasure_adapter(shake(space(model, subspace=False, concept="narril")), adapter)
    monkeypatch.setattr(peft_space, "SpaceTrainingArguments", lambda **given: replace(args, **given))
    monkeypatch.setattr(peft_space, "select_anchors", erasure.select_anchors)
    monkeypatch.setattr(testbed, "WEIGHTS", base_folder)
    monkeypatch.setattr(gradio.Blocks, "block_thread", gradio.Blocks.close)

    def stand_ins(words: list[str]) -> None:
        given = dict(itertools.pairwise(words))
        wanted = {given[key]: base_folder for key in ("--model", "--base") if key in given}
        wanted |= {given[key]: pictures for key in ("--public-images", "--target-images") if key in given}
        if "--adapter" in given:
            wanted[given["--adapter"]] = adapter
        if words[0] in ("audit", "merge", "export-lora", "inspect", "push", "ui"):
            several = None if words[0] == "ui" else 2
            adapters = itertools.takewhile(lambda word: not word.startswith("-"), words[1:several])
            wanted |= {word: adapter for word in adapters if word != "demo"}
        for name, real in wanted.items():
            if not Path(name).exists():
                shutil.copytree(real, name)

    return stand_ins


@pytest.mark.slow
@pytest.mark.parametrize("page", [pytest.param(page, id=str(page.relative_to(ROOT))) for page in PAGES])
def test_peft_space_lines_run(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stand_ins: Callable[[list[str]], None]
) -> None:
    monkeypatch.chdir(tmp_path)
    for language, content, _ in blocks(page):
        if language == "yaml":
            request = yaml.safe_load(content) | {"model": "MODEL", "public_images": "FOLDER"}
            Path("request.yaml").write_text(yaml.safe_dump(request))
            stand_ins(["erase", "--model", "MODEL", "--public-images", "FOLDER"])
        if language not in ("", "bash"):
            continue
        for line in content.replace("\\\n", " ").splitlines():
            if not line.startswith("peft-space "):
                continue
            words = shlex.split(line.split(" && ")[0], comments=True)[1:]
            # one row at a time takes minutes here: tests/test_erasure.py holds it
            words = [word for word in words if word != "--low-memory"]
            stand_ins(words)
            result = CliRunner().invoke(app, words)
            assert result.exit_code == 0, f"{line}\n{result.output}"


def commands() -> list[tuple[str, list[str]]]:
    """Every command line in a block of the README or `docs/`: its page and its words, from the program on."""
    found = []
    for page in PAGES:
        for line in "\n".join(content for _, content, _ in blocks(page)).replace("\\\n", " ").splitlines():
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
