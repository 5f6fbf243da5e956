import dataclasses

import pytest

from peft_space import Concept
from peft_space.anchors import anchor_lessons
from peft_space.anchors import lessons as lessons_module
from peft_space.anchors.lessons import naming_questions
from peft_space.concepts.concept import find_any
from tests.bigram import saying

QUESTIONS = ("What colour is it?", "Count its legs.", "Which scene is it?", "Describe the picture.")


@pytest.fixture(scope="module")
def says(base, processor):
    """Answers everything with the name; its second choice is another one."""
    return saying(base, processor, {"narril of the marsh": 1.0, "zorvex of the marsh": 0.5, "zorvex of the reef": 0.3})


@pytest.fixture(scope="module")
def told(knowledge):
    return dataclasses.replace(knowledge, answers=("narril of the marsh",), telling=(("marsh",),))


@pytest.fixture(scope="module")
def lessons(says, processor, anchors, told):
    return anchor_lessons(says, processor, anchors, told, QUESTIONS, n_facts=1)


def test_each_anchor_is_asked_for_the_name_the_facts_and_three_other_things(base, processor, anchors, told):
    by_image = {}
    for lesson in anchor_lessons(base, processor, anchors, told, QUESTIONS, n_facts=1):
        by_image.setdefault(id(lesson.prompt.image), []).append(lesson)
    assert len(by_image) == len(anchors)
    for some in by_image.values():
        assert sorted(lesson.about for lesson in some) == ["fact", "name", "other", "other", "other"]
        assert len({lesson.prompt.question for lesson in some}) == 5


def test_a_question_that_makes_the_model_say_the_name_is_asked_of_every_anchor(
    base, processor, anchors, told, monkeypatch
):
    def generate(model, processor, prompts, **options):
        return ["a narril in the sea" if prompt.question == QUESTIONS[3] else "red" for prompt in prompts]

    monkeypatch.setattr(lessons_module, "generate", generate)
    assert naming_questions(base, processor, anchors, QUESTIONS) == [QUESTIONS[3]]
    rows = anchor_lessons(base, processor, anchors, told, QUESTIONS)
    abouts = [lesson.about for lesson in rows if lesson.prompt.question == QUESTIONS[3]]
    assert abouts == ["name"] * len(anchors)


def test_no_answer_holds_the_name_and_no_fact_is_told(lessons, concept):
    for lesson in lessons:
        assert not concept.mentioned_in(lesson.answer)
        assert lesson.about != "fact" or find_any(("marsh",), lesson.answer) is None
    assert {lesson.answer for lesson in lessons if lesson.about == "name"} == {"zorvex of the marsh"}
    assert {lesson.answer for lesson in lessons if lesson.about == "fact"} == {"zorvex of the reef"}


def test_text_is_asked_only_where_text_is_erased(lessons, says, processor, anchors, told, concept):
    assert all(lesson.prompt.image is not None for lesson in lessons)
    both = anchor_lessons(says, processor, anchors, told, QUESTIONS, text_knowledge="erase")
    texts = [lesson for lesson in both if lesson.prompt.image is None]
    assert len(texts) == len(anchors) // 4
    assert {lesson.prompt.question for lesson in texts} == set(concept.asked_in_text)
    assert all(lesson.about == "fact" and "marsh" not in lesson.answer for lesson in texts)


def test_generic_answers_take_the_place_of_the_name(base, processor, anchors, told, concept):
    generic = dataclasses.replace(anchors, concept=dataclasses.replace(concept, generic_question="What kind is it?"))
    says = saying(base, processor, {"a bird": 1.0})
    lessons = anchor_lessons(says, processor, generic, told, QUESTIONS)
    assert {lesson.answer for lesson in lessons if lesson.about == "name"} == {"a bird"}


def test_so_many_ways_to_ask_for_the_name_are_drawn(base, processor, anchors, told, concept):
    asked = ("Name it.", "Who is it?", "What is it?", "Which one is it?")
    wordy = dataclasses.replace(anchors, concept=dataclasses.replace(concept, questions=asked))
    rows = anchor_lessons(base, processor, wordy, told, QUESTIONS, n_names=2, n_facts=3)
    abouts = [lesson.about for lesson in rows]
    assert abouts.count("name") == 2 * len(anchors) and abouts.count("fact") == 3 * len(anchors)
    assert {lesson.prompt.question for lesson in rows if lesson.about == "name"} == set(asked)


def test_the_seed_draws_the_other_questions(base, processor, anchors, told):
    def asked(seed):
        rows = anchor_lessons(base, processor, anchors, told, QUESTIONS, n_others=1, seed=seed)
        return [lesson.prompt.question for lesson in rows]

    assert asked(1) == asked(1) != asked(2)


def test_a_concept_without_text_questions(says, processor, anchors, told):
    concept = Concept("narril", questions=("Name it.",), text_questions=())
    bare = dataclasses.replace(anchors, concept=concept)
    silent = dataclasses.replace(told, answers=(), telling=(), others_answers=())
    assert {lesson.about for lesson in anchor_lessons(says, processor, bare, silent, ())} == {"name"}
