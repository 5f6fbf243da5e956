import pytest
from PIL import Image

from peft_space import Concept
from peft_space.evaluation import EvaluatedSet, Example

PICTURE, OTHER = Image.new("RGB", (2, 2)), Image.new("RGB", (2, 2), "red")


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"question": " "}, "`question`"),
        ({"answer": ""}, "`answer`"),
        ({"task": "guess"}, "`task` must be one of name, attributes"),
        ({"task": "choice"}, "`options`"),
        ({"task": "choice", "options": ("A", "B"), "answer": "C"}, "`options`"),
        ({"options": ("x",)}, "`options`"),
    ],
)
def test_examples_that_are_none(wrong, told):
    with pytest.raises(ValueError, match=told):
        Example(**({"question": "What is it?", "answer": "x"} | wrong))


def test_a_set_is_split_by_any_of_the_concept_s_names():
    shown = [Example("What?", "x", concept=name) for name in ("Owl", "bubo", "cat", None)]
    own, foreign = EvaluatedSet(tuple(shown)).split(Concept("owl", aliases=("Bubo",)))
    assert own == shown[:2] and foreign == shown[2:]


def test_pictures_of_a_concept_come_once():
    examples = [Example("What?", "x", image, "owl") for image in (PICTURE, PICTURE, OTHER)]
    examples += [Example("What?", "x", Image.new("RGB", (1, 1)), "cat"), Example("What?", "x", None, "owl")]
    found = EvaluatedSet(tuple(examples)).pictures(Concept("Owl"))
    assert found.images == (PICTURE, OTHER)


def test_sets_add_up():
    both = EvaluatedSet((Example("a?", "b"),), "first") + EvaluatedSet((Example("c?", "d"),))
    assert [e.answer for e in both] == ["b", "d"] and len(both) == 2 and both.name == "first"
