"""The notebooks in docs/: each is the same as its paired script, and runs from the first cell to the last."""

from __future__ import annotations

import runpy
from pathlib import Path

import jupytext
import pytest

from tests.notebooks import FOLDER, SCRIPTS
from tests.short import STEPS, shorten


def cells(path: Path) -> list[tuple[str, str]]:
    return [(cell.cell_type, cell.source) for cell in jupytext.read(path).cells]


def test_there_are_two() -> None:
    assert [script.stem for script in SCRIPTS] == ["audit", "erase"]
    assert sorted(path.stem for path in FOLDER.glob("*.ipynb")) == ["audit", "erase"]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_the_pair_says_the_same(script: Path) -> None:
    assert cells(script) == cells(script.with_suffix(".ipynb"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_the_notebook_was_run_and_nothing_failed(script: Path) -> None:
    code = [cell for cell in jupytext.read(script.with_suffix(".ipynb")).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert outputs and not [output for output in outputs if output.output_type == "error"]


@pytest.mark.slow
def test_an_erasure_runs_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(FOLDER / "erase.py"))
    assert "reached: True" in capsys.readouterr().out


@pytest.mark.slow
def test_an_audit_runs_on_a_short_erasure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    shorten(monkeypatch)
    names = runpy.run_path(str(FOLDER / "audit.py"))
    said = capsys.readouterr().out
    assert f"after {STEPS} steps" in said
    assert all(outcome.label in said and outcome.verdict in said for outcome in names["audit"].outcomes)
    assert {"audit.json", "audit.md"} <= {file.name for file in (tmp_path / "audit").iterdir()}
