"""PEFT's features, on every model, with a subspace attached: one cell for each. The table is in `table.py`."""

from pathlib import Path

import pytest

from tests.conformance.cases import CASES
from tests.conformance.table import CELLS, FEATURES, NOT_RUN, Feature, markdown

DOCUMENT = Path(__file__).parents[2] / "docs" / "conformance.md"


@pytest.mark.parametrize(("model", "feature"), CELLS, ids=[f"{model}-{f.__name__}" for model, f in CELLS])
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_conforms(model: str, feature: Feature, tmp_path: Path) -> None:
    feature(CASES[model], tmp_path)


def test_every_cell_is_run_or_has_a_reason_and_the_documentation_shows_them_all():
    assert len(CELLS) + len(NOT_RUN) == len(FEATURES) * len(CASES)
    assert all(NOT_RUN.values()) and all(feature.__doc__ for feature in FEATURES)
    text = DOCUMENT.read_text(encoding="utf-8")
    assert markdown() in text, "put what `python -m tests.conformance.table` prints into the document"
    assert all(reason in text for reason in NOT_RUN.values())
