"""Each check on each kind of model: one cell of the table in docs/models.md. The table is in `table.py`."""

from pathlib import Path

import pytest

from tests.architectures.table import CELLS, CHECKS, NOT_RUN, Check, legend, markdown
from tests.architectures.zoo import ZOO

DOCUMENT = Path(__file__).parents[2] / "docs" / "models.md"


@pytest.mark.parametrize(("name", "check"), CELLS, ids=[f"{name}-{check.__name__}" for name, check in CELLS])
def test_works(name: str, check: Check, tmp_path: Path) -> None:
    check(ZOO[name], tmp_path)


def test_every_cell_is_run_or_has_a_reason_and_the_documentation_shows_them_all() -> None:
    assert len(CELLS) + len(NOT_RUN) == len(CHECKS) * len(ZOO)
    text = DOCUMENT.read_text(encoding="utf-8")
    for shown in (markdown(), legend()):
        assert shown in text, "put what `python -m tests.architectures.table` prints into the document"
