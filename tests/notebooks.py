"""Makes the notebooks in docs/ from their scripts: runs every cell and keeps what it shows.

    python -m tests.notebooks [NAME ...]

Needs `nbclient` and `ipykernel`. What libraries write on standard error is left out, and of an image the smaller form
is kept. `tests/test_notebooks.py` holds scripts and notebooks together.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jupytext

FOLDER = Path(__file__).parents[1] / "docs" / "notebooks"
SCRIPTS = sorted(FOLDER.glob("*.py"))


def make(script: Path) -> None:
    from nbclient import NotebookClient

    notebook = jupytext.read(script)
    with tempfile.TemporaryDirectory() as folder:
        NotebookClient(
            notebook, timeout=None, kernel_name="python3", resources={"metadata": {"path": folder}}
        ).execute()
    for cell in notebook.cells:
        cell.metadata = {}
        if cell.cell_type == "code":
            cell.outputs = [_small(output) for output in cell.outputs if output.get("name") != "stderr"]
    jupytext.write(notebook, script.with_suffix(".ipynb"))


def _small(output: Any) -> Any:
    images = [kind for kind in output.get("data", {}) if kind.startswith("image/")]
    for kind in sorted(images, key=lambda kind: len(output["data"][kind]))[1:]:
        del output["data"][kind]
    return output


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=[script.stem for script in SCRIPTS])
    for name in parser.parse_args(arguments).names:
        make(FOLDER / f"{name}.py")


if __name__ == "__main__":
    main()
