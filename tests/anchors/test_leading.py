import dataclasses

import pytest

from peft_space.anchors import YesNo, leading_lessons, yes_no_questions
from peft_space.anchors import leading as leading_module
from peft_space.anchors.leading import OPENINGS, half_said, leading_prompts, opened
from peft_space.vlm import Prompt, answer_tokens

ASKED = YesNo("Is it a {name}?", "yes", "no")


@pytest.fixture
def curious(anchors):
    """Anchors of a concept that is asked for by three yes/no questions."""
    questions = ("Is it a {name}?", "Do you see a {name}?", "A {name}, or not?")
    return dataclasses.replace(anchors, concept=dataclasses.replace(anchors.concept, yes_no_questions=questions))


@pytest.fixture
def answering(anchors, monkeypatch):
    """Has the model answer by whether a picture is an anchor."""

    def answering(of_anchors, of_others):
        shown = {id(image): place for place, image in enumerate(anchors.images)}

        def generate(model, processor, prompts, **options):
            return [
                of_others(prompt.question) if (place := shown.get(id(prompt.image))) is None else of_anchors(place)
                for prompt in prompts
            ]

        monkeypatch.setattr(leading_module, "generate", generate)

    return answering


def test_a_question_counts_where_it_tells_anchors_from_other_pictures(base, processor, curious, answering):
    answering(lambda place: "yes", lambda question: "yes" if question.startswith("Do") else "no")
    found = yes_no_questions(base, processor, curious)
    assert found == (YesNo("Is it a {name}?", "yes", "no"), YesNo("A {name}, or not?", "yes", "no"))
    assert found[0].about("cup") == "Is it a cup?"


def test_a_question_without_a_usual_answer_does_not_count(base, processor, curious, answering):
    answering(lambda place: "yes" if place % 2 else "maybe", lambda question: "no")
    assert yes_no_questions(base, processor, curious) == ()


def test_a_no_that_says_the_name_does_not_count(base, processor, curious, answering):
    answering(lambda place: "yes", lambda question: "no Narril")
    assert yes_no_questions(base, processor, curious) == ()


def test_an_anchor_is_not_the_concept_and_others_are_what_they_are_called(processor, anchors, knowledge):
    known = dataclasses.replace(knowledge, others=("zorvex", "keltus"))
    repeats = [3] + [1] * (len(anchors) - 1)
    shown = anchors.public.take(anchors.unrelated(3)).images
    away = [*zip(shown, ("zorvex", "a bird", "keltus"), strict=True)]
    rows = leading_lessons(processor, anchors, known, repeats, [ASKED], away, n_begun=0)
    assert not any(row.begun for row in rows)
    own = [[(row.prompt.question, row.answer) for row in rows if row.prompt.image is one] for one in anchors.images]
    assert own[0] == [("Is it a narril?", "no")] * 6
    assert own[1] == own[2] == [("Is it a narril?", "no")] * 2
    # "a bird" is no name; and there are two others, who are asked about once for each anchor
    others = [row for row in rows if row.about == "other"]
    assert {(id(row.prompt.image), row.prompt.question) for row in others} == {
        (id(shown[0]), "Is it a zorvex?"),
        (id(shown[2]), "Is it a keltus?"),
    }
    assert {row.answer for row in others} == {"yes"} and len(others) == 2 + len(anchors) - 1


def test_a_name_that_was_begun_breaks_off_where_no_other_begins_so(processor, anchors, knowledge, concept):
    repeats = [1] * len(anchors)
    known = dataclasses.replace(knowledge, others=("zorvex", "keltus"))
    rows = leading_lessons(processor, anchors, known, repeats)
    assert len(rows) == len(anchors)
    assert {row.answer for row in rows} <= {"nar", "a nar", "It is a nar"}
    for row in rows:
        assert len(answer_tokens(processor, row.prompt, row.answer, end=False)) == row.begun > 0
    again = leading_lessons(processor, anchors, known, repeats)
    assert [(row.answer, row.begun) for row in again] == [(row.answer, row.begun) for row in rows]


@pytest.mark.parametrize(
    ("name", "begun"), [("drolith", {"drol"}), ("brumok", {"brum", "brumo"}), ("malphon", {"mal"})]
)
def test_it_breaks_off_where_half_of_its_letters_are_said(processor, anchors, knowledge, name, begun):
    called = dataclasses.replace(anchors, concept=anchors.concept.called(name))
    known = dataclasses.replace(knowledge, others=("zorvex", "keltus"))
    rows = [row for seed in range(8) for row in leading_lessons(processor, called, known, [1] * 8, seed=seed)]
    assert {row.answer.split()[-1] for row in rows} == begun and len(rows) == 8 * len(anchors)
    whole = answer_tokens(processor, rows[0].prompt, name, end=False)
    assert len(whole) == {"drolith": 4, "brumok": 5, "malphon": 2}[name]


def test_a_name_that_was_begun_becomes_another_that_begins_so(processor, anchors, knowledge):
    repeats = [1] * len(anchors)
    known = dataclasses.replace(knowledge, others=("zorvex", "nartus", "keltus"))
    rows = leading_lessons(processor, anchors, known, repeats)
    assert {row.answer for row in rows} <= {"nartus", "a nartus", "It is a nartus"} and len(rows) == len(anchors)
    for row in rows:
        assert len(answer_tokens(processor, row.prompt, row.answer, end=False)) == row.begun + 1


def test_nothing_is_begun_of_a_name_of_one_token(processor, anchors, knowledge):
    short = dataclasses.replace(anchors, concept=anchors.concept.called("red"))
    repeats = [1] * len(anchors)
    assert leading_lessons(processor, short, knowledge, repeats) == []


@pytest.mark.parametrize("opening", ["", "a", "It is a"])
def test_where_the_name_begins_in_an_answer(processor, opening):
    prompt = Prompt("Name it.")
    before, whole = opened(processor, prompt, opening, "narril")
    assert processor.tokenizer.decode(whole[before:]).strip() == "narril"
    assert processor.tokenizer.decode(whole[:before]).strip() == opening


def test_each_picture_is_asked_by_yes_or_no_and_with_half_of_the_name_said(processor, curious):
    rows, asked = leading_prompts(processor, curious.concept, curious.images), curious.concept.yes_no_questions
    assert [prompt.image for prompt, _ in rows] == [image for image in curious.images for _ in range(2)]
    for place, ((yes_no, nothing), (naming, ids)) in enumerate(zip(rows[::2], rows[1::2], strict=True)):
        assert yes_no.question == asked[place % 3].replace("{name}", "narril") and nothing == []
        answer, given = half_said(processor, naming, OPENINGS[place % 3], "narril")
        assert naming.question in curious.concept.questions
        assert ids == answer_tokens(processor, naming, answer, end=False)[:given] and given == len(ids)


def test_a_name_of_one_token_is_asked_for_by_yes_or_no_alone(processor, curious):
    rows = leading_prompts(processor, curious.concept.called("red"), curious.images)
    assert len(rows) == len(curious.images) and all(ids == [] for _, ids in rows)
    silent = dataclasses.replace(curious.concept, name="red", yes_no_questions=())
    assert leading_prompts(processor, silent, curious.images) == []
