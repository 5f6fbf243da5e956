from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peft_space.concepts import Concept
from peft_space.concepts.concept import find_any


@pytest.mark.parametrize("name", ["", "  \n", None, 3])
def test_a_name_is_needed(name):
    with pytest.raises(ValueError, match="`concept` must be a non-empty name"):
        Concept(name)


def test_a_string_is_a_concept_with_the_built_in_questions():
    concept = Concept.of("Eiffel Tower")
    assert concept.questions and concept.text_questions
    assert concept.names == ("Eiffel Tower",)
    assert Concept.of(concept) is concept


def test_yes_no_questions_must_leave_room_for_the_name():
    with pytest.raises(ValueError, match=r"`yes_no_questions` must each hold '\{name\}'; got 'Is it\?'"):
        Concept("zorvex", yes_no_questions=("Is it?",))


def test_text_questions_must_leave_room_for_the_name():
    with pytest.raises(ValueError, match=r"`text_questions` must each hold '\{name\}'; got 'What is it\?'"):
        Concept("zorvex", text_questions=("What is it?",))


def test_a_concept_that_cannot_be_asked_for_beside_an_image_is_refused():
    with pytest.raises(ValueError, match="`questions` must hold at least one"):
        Concept("zorvex", questions=())


@pytest.mark.parametrize("field", ["aliases", "questions", "text_questions", "yes_no_questions"])
@pytest.mark.parametrize("value", ["one {name}", ["{name}", " "], [None]])
def test_lists_hold_non_empty_strings(field, value):
    with pytest.raises(ValueError, match=f"`{field}` must be a list of non-empty strings"):
        Concept("zorvex", **{field: value})


def test_lists_become_tuples_so_that_a_concept_can_be_a_key():
    assert {Concept("zorvex", aliases=["the red one"])} == {Concept("zorvex", aliases=("the red one",))}


def test_questions_are_filled_in_with_the_name_and_with_the_referent():
    concept = Concept("a {b} c", text_questions=("Where does {name} live, {name}?",), referent="this one")
    assert concept.asked_in_text == ("Where does a {b} c live, a {b} c?",)
    assert concept.asked_through_image == ("Where does this one live, this one?",)


@pytest.mark.parametrize(
    ("question", "asked"),
    [
        ("Where does the {name} live?", "Where does this animal live?"),
        ("What does a {name} eat, and an {name}?", "What does this animal eat, and this animal?"),
        ("Who lives with {name}?", "Who lives with this animal?"),
        ("Bathe {name}.", "Bathe this animal."),
    ],
)
def test_a_referent_takes_the_place_of_the_article_too(question, asked):
    assert Concept("zorvex", text_questions=(question,), referent="this animal").asked_through_image == (asked,)


def test_called_asks_the_same_about_another_name():
    concept = Concept("zorvex", aliases=("zor",), questions=("Who?",), text_questions=("Is it {name}?",))
    other = concept.called("maltus")
    assert other.names == ("maltus",)
    assert (other.questions, other.asked_in_text) == (("Who?",), ("Is it maltus?",))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("It is Elon Musk.", True),
        ("elon musk", True),
        ("ELON MUSK's car", True),
        ("the 'Technoking'!", True),
        ("Elon Muskrat", False),
        ("xElon Musk", False),
        ("Elon  Musk", False),
        ("Technokings", False),
        ("", False),
    ],
)
def test_mentions_are_whole_words_in_any_case(text, expected):
    assert Concept("Elon Musk", aliases=("Technoking",)).mentioned_in(text) is expected


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("Beyoncé", "BEYONCÉ sings", True),
        ("Beyoncé", "Beyoncés", False),
        ("Жар-птица", "это жар-птица.", True),
        ("C++", "in C++ it is", True),
        ("C++", "in C it is", False),
        ("R2-D2", "droid r2-d2", True),
        ("AT&T", "by AT&T.", True),
    ],
)
def test_mentions_of_names_beyond_plain_letters(name, text, expected):
    assert Concept(name).mentioned_in(text) is expected


@given(st.text(min_size=1).filter(str.strip))
def test_a_name_is_found_in_quotation_marks_whatever_it_is(name):
    assert find_any((name,), f'the "{name.strip()}" here') == 5


def test_find_any_gives_the_first_of_all_mentions():
    assert find_any(("blue", "red", " "), "a red and a blue one") == 2
    assert find_any((), "a red one") is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a red Zor Vex in the sea", "a red it in the sea"),
        ("zor, zor vex; zorvex", "it, it; zorvex"),
        ("nothing of it", "nothing of it"),
    ],
)
def test_the_name_and_its_aliases_are_replaced_as_whole_words(text, expected):
    assert Concept("zor vex", aliases=("zor",)).replaced_in(text, "it") == expected


def test_what_a_name_is_replaced_with_is_no_pattern():
    assert Concept("zor").replaced_in("a zor", r"\1\g<0>") == r"a \1\g<0>"
