"""The notebooks in docs/: each is the same as its paired script, and runs from the first cell to the last."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import jupytext
import pytest

from tests.notebooks import FOLDER, SCRIPTS


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
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_it_runs(script: Path, tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, script],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    assert "reached: True" in run.stdout
