from __future__ import annotations

import pytest

from peft_space.concepts import Concept, Retain


def test_the_defaults_need_nothing_from_the_user():
    retain = Retain()
    assert retain.images is None
    assert len(set(retain.questions)) == len(retain.questions) > 0
    assert len(set(retain.texts)) == len(retain.texts) > 0


@pytest.mark.parametrize("field", ["questions", "texts"])
@pytest.mark.parametrize("value", ["one string", [""], [3]])
def test_lists_hold_non_empty_strings(field, value):
    with pytest.raises(ValueError, match=f"`retain.{field}` must be a list of non-empty strings"):
        Retain(**{field: value})


def test_lists_become_tuples():
    assert Retain(texts=["one"]).texts == ("one",)
    assert Retain(questions=[]).questions == ()


@pytest.mark.parametrize("value", ["sebgup", Concept("sebgup"), [""], [3]])
def test_names_to_protect_are_a_list(value):
    with pytest.raises(ValueError, match=r"`retain\.protect` must be a list of names or concepts"):
        Retain(protect=value)
    assert Retain(protect=["a", Concept("b")]).protect == ("a", Concept("b"))


@pytest.mark.parametrize("field", ["n_images", "questions_per_image"])
def test_counts_are_positive(field):
    with pytest.raises(ValueError, match=f"`retain.{field}` must be at least 1; got 0"):
        Retain(**{field: 0})


def test_how_many_relatives_is_not_negative():
    with pytest.raises(ValueError, match=r"`retain\.relatives` must not be negative; got -1"):
        Retain(relatives=-1)
    assert Retain(relatives=0).relatives == 0
