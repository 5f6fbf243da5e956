"""The default targets of every image-text-to-text class, and the table in docs/models.md that shows them."""

import re
from pathlib import Path

import pytest
import transformers

from tests.architectures.sweep import Sighting, sightings
from tests.architectures.table import classes_markdown

DOCUMENT = Path(__file__).parents[2] / "docs" / "models.md"


@pytest.fixture(scope="module")
def seen() -> tuple[list[Sighting], list[str]]:
    return sightings()


def test_attention_and_mlp_of_the_language_model_on_nearly_all_classes(seen) -> None:
    classes = seen[0]
    assert len(classes) >= 80
    wrong = {one.name: (one.wrong[:3], one.missing[:3]) for one in classes if not one.right}
    assert len(wrong) <= 0.05 * len(classes), wrong


def test_all_linear_layers_would_be_right_on_hardly_any(seen) -> None:
    """So the judge does tell."""
    assert sum(one.everything for one in seen[0]) < 0.1 * len(seen[0])


def test_the_documentation_shows_each(seen) -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    made_with = re.search(r"transformers (\d+\.\d+\.\d+)", text)
    assert made_with is not None
    if made_with[1] != transformers.__version__:
        pytest.skip(f"the table is of transformers {made_with[1]}")
    assert classes_markdown(*seen) in text, "put what `python -m tests.architectures.table` prints into the document"
