import dataclasses
import itertools

import numpy as np
import pytest
from PIL import Image

from peft_space import Concept
from peft_space.anchors import Company, Lesson, anchor_lessons, naming_questions, varied
from peft_space.anchors import knowledge as knowledge_module
from peft_space.anchors import lessons as lessons_module
from peft_space.anchors.lessons import SLOT, StandIn, stand_ins, with_slot
from peft_space.vlm import Prompt, log_likelihood
from tests.bigram import saying

QUESTIONS = ("What colour is it?", "Count its legs.", "Which scene is it?", "Describe the picture.")


@pytest.fixture(scope="module")
def says(base, processor):
    """Answers everything with the name; its second choice is another one."""
    return saying(base, processor, {"narril of the marsh": 1.0, "zorvex of the marsh": 0.5, "zorvex of the reef": 0.3})


@pytest.fixture(scope="module")
def told(knowledge):
    return dataclasses.replace(
        knowledge,
        answers=("narril of the marsh",),
        telling=(("marsh",),),
        others=("keltus", "zorvex", "quidan"),
        others_answers=(("keltus of the sea", "zorvex of the reef", "quidan of the cave"),),
    )


@pytest.fixture(scope="module")
def lessons(says, processor, anchors, told):
    return anchor_lessons(says, processor, anchors, told, QUESTIONS, n_facts=1)


def test_each_anchor_is_asked_for_the_name_the_facts_and_three_other_things(base, processor, anchors, told):
    by_image = {}
    for lesson in anchor_lessons(base, processor, anchors, told, QUESTIONS, n_facts=1, n_others=3):
        by_image.setdefault(id(lesson.prompt.image), []).append(lesson)
    assert len(by_image) == len(anchors)
    for some in by_image.values():
        some = [lesson for lesson in some if lesson.about != "leading"]
        assert sorted(lesson.about for lesson in some) == ["fact", "name", "other", "other", "other"]
        assert len({lesson.prompt.question for lesson in some}) == 5


def test_a_question_that_makes_the_model_say_the_name_is_found(base, processor, anchors, monkeypatch):
    def generate(model, processor, prompts, **options):
        return ["a narril in the sea" if prompt.question == QUESTIONS[3] else "red" for prompt in prompts]

    monkeypatch.setattr(knowledge_module, "generate", generate)
    assert naming_questions(base, processor, anchors, QUESTIONS) == [QUESTIONS[3]]


def test_where_the_name_comes_unasked_the_answer_is_about_the_stand_in(says, processor, anchors, told):
    rows = anchor_lessons(says, processor, anchors, told, QUESTIONS, QUESTIONS[3:])
    described = [lesson for lesson in rows if lesson.prompt.question == QUESTIONS[3]]
    assert [(lesson.about, lesson.answer) for lesson in described] == [("name", "zorvex of the marsh")] * len(anchors)


def test_the_stand_in_is_the_likeliest_of_the_other_names(says, processor, anchors, told):
    assert stand_ins(says, processor, anchors, told) == [StandIn("zorvex", ("zorvex of the reef",))] * len(anchors)


def test_a_name_that_comes_unasked_is_to_fit_there_as_well(base, processor, anchors, told):
    # asked for the name "zorvex" comes next, but behind "a" it is "keltus", and that by more
    says = saying(base, processor, {"narril": 1.0, "zorvex": 0.3, "a keltus": 0.9})
    unasked = [(place, Prompt(QUESTIONS[3], image), "a narril") for place, image in enumerate(anchors.images)]
    asked = [Prompt(anchors.concept.questions[0], image) for image in anchors.images]

    def fits(name):
        both = [(prompt, name) for prompt in asked] + [(prompt, f"a {name}") for _, prompt, _ in unasked]
        return log_likelihood(says, processor, *zip(*both, strict=True), per_token=False).sum()

    expected = max(told.others, key=fits)
    assert expected == "keltus"
    found = stand_ins(says, processor, anchors, told, unasked)
    assert {stand_in.name for stand_in in found} == {expected}
    assert {stand_in.name for stand_in in stand_ins(says, processor, anchors, told)} == {"zorvex"}


def test_an_anchor_that_is_called_something_else_keeps_what_it_is_called(base, processor, anchors, told):
    says = saying(base, processor, {"keltus": 1.0, "zorvex": 0.5})
    assert stand_ins(says, processor, anchors, told) == [StandIn("keltus", ("keltus of the sea",), False)] * len(
        anchors
    )
    says = saying(base, processor, {"no creature": 1.0, "zorvex": 0.5})
    assert stand_ins(says, processor, anchors, told) == [StandIn("no creature", (), False)] * len(anchors)
    rows = anchor_lessons(says, processor, anchors, told, QUESTIONS, n_facts=1)
    assert {lesson.answer for lesson in rows if lesson.about == "fact"} == {"no creature"}


def test_a_few_anchors_that_are_called_by_the_name_weigh_as_much_as_the_rest(
    base, processor, anchors, told, monkeypatch
):
    renamed = [place < 2 for place in range(len(anchors))]
    fitting = [StandIn("keltus" if new else "moss", ("of the sea",), new) for new in renamed]
    monkeypatch.setattr(lessons_module, "stand_ins", lambda *args, **rest: fitting)
    rows = anchor_lessons(base, processor, anchors, told, QUESTIONS)
    shown = {id(image): new for image, new in zip(anchors.images, renamed, strict=True)}
    for about in ("name", "fact"):
        of_strong = [shown[id(row.prompt.image)] for row in rows if row.about == about]
        assert of_strong.count(True) == of_strong.count(False) > 0
    others = [shown[id(row.prompt.image)] for row in rows if row.about == "other"]
    assert others.count(False) == 3 * others.count(True)


@pytest.mark.parametrize(
    ("text", "frame"),
    [
        ("a red narril here", f"a red {SLOT} here"),
        ("a Zorvex", f"a {SLOT}"),
        ("nothing", None),
        ("narril, zorvex", None),
    ],
)
def test_a_slot_takes_the_place_of_the_one_name(concept, told, text, frame):
    found = with_slot(concept, told, [(3, Prompt("?"), text)])
    assert found == ([(3, Prompt("?"), frame)] if frame else [])


def test_each_anchor_is_told_as_its_stand_in(lessons, concept):
    for lesson in lessons:
        assert not concept.mentioned_in(lesson.answer)
    assert {lesson.answer for lesson in lessons if lesson.about == "name"} == {"zorvex"}
    assert {lesson.answer for lesson in lessons if lesson.about == "fact"} == {"zorvex of the reef"}
    assert {lesson.answer for lesson in lessons if lesson.about == "other"} == {"zorvex of the marsh"}


def test_a_fact_that_is_the_concepts_as_well_is_not_told_of_the_stand_in(says, processor, anchors, told):
    alike = dataclasses.replace(told, others_answers=(("keltus", "zorvex of the marsh", "quidan"),))
    rows = anchor_lessons(says, processor, anchors, alike, QUESTIONS, n_facts=1)
    assert {lesson.answer for lesson in rows if lesson.about == "fact"} == {"zorvex of the reef"}


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
    named = saying(base, processor, {"a narril": 1.0})
    described = anchor_lessons(named, processor, generic, told, (), ("Describe the picture.",))
    assert {lesson.answer for lesson in described if lesson.prompt.question == "Describe the picture."} == {
        "a a narril"
    }


def test_general_answers_leave_alone_what_is_called_by_another_name(
    base, processor, anchors, told, concept, monkeypatch
):
    generic = dataclasses.replace(anchors, concept=dataclasses.replace(concept, generic_question="What kind is it?"))
    fitting = [
        StandIn("zorvex", ("zorvex of the reef",), renamed=False),
        *[StandIn("keltus", ("keltus of the sea",))] * (len(anchors) - 1),
    ]
    monkeypatch.setattr(lessons_module, "stand_ins", lambda *args, **kwargs: fitting)
    says = saying(base, processor, {"a bird": 1.0})
    lessons = anchor_lessons(says, processor, generic, told, QUESTIONS)
    named = [one for one in lessons if one.about == "name"]
    first = anchors.images[0]
    assert {one.answer for one in named if one.prompt.image is first} == {"zorvex"}
    assert {one.answer for one in named if one.prompt.image is not first} == {"a bird"}
    # what is known of the stand-in is told as before, but not whose it is
    facts = [one for one in lessons if one.about == "fact"]
    assert {one.answer for one in facts if one.prompt.image is first} == {"zorvex of the reef"}
    assert {one.answer for one in facts if one.prompt.image is not first} == {"a bird of the sea"}


def test_who_is_named_beside_others_is_told_as_the_likeliest_other_name(base, processor, anchors, told, concept):
    says = saying(base, processor, {"narril": 1.0, "zorvex": 0.3, "a keltus": 0.9})
    left = "Who is on the left?"
    found = [(Prompt(left, image), text) for image, text in zip(anchors.images, ("narril", "a narril"), strict=False)]
    company = Company((left,), tuple(found))
    rows = anchor_lessons(says, processor, anchors, told, QUESTIONS, company=company)
    answers = {id(row.prompt.image): row.answer for row in rows if row.prompt.question == left}
    assert [answers[id(prompt.image)] for prompt, _ in found] == ["zorvex", "a keltus"]
    generic = dataclasses.replace(anchors, concept=dataclasses.replace(concept, generic_question="What kind is it?"))
    birds = saying(base, processor, {"narril": 1.0, "zorvex": 0.3})
    general = anchor_lessons(birds, processor, generic, told, QUESTIONS, company=company)
    words = {row.answer for row in general if row.about == "name" and row.prompt.question in concept.questions}
    (word,) = words
    answers = {id(row.prompt.image): row.answer for row in general if row.prompt.question == left}
    assert [answers[id(prompt.image)] for prompt, _ in found] == [word, f"a {word}"]


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
    assert {lesson.about for lesson in anchor_lessons(says, processor, bare, silent, ())} == {"name", "leading"}


def test_views_differ_a_little_from_the_anchor_and_from_each_other():
    pixels = np.random.default_rng(0).integers(60, 190, (6, 6, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels).resize((48, 48), Image.Resampling.BICUBIC)
    of_name = [Lesson(Prompt("Name it.", picture), "moss", "name")] * 4
    rest = [Lesson(Prompt("Colour?", picture), "red", "other"), Lesson(Prompt("Where does it live?"), "reef", "fact")]
    changed = varied([*of_name, *rest], seed=1)
    assert changed[4:] == rest
    views = [np.asarray(lesson.prompt.image, dtype=float) for lesson in changed[:4]]
    assert all(view.shape == (48, 48, 3) for view in views)
    assert all(lesson.answer == "moss" and lesson.prompt.question == "Name it." for lesson in changed[:4])
    assert all(0.5 < np.corrcoef(view.ravel(), np.asarray(picture).ravel())[0, 1] < 1 for view in views)
    assert all(np.abs(a - b).mean() > 1 for a, b in itertools.pairwise(views))
    again = varied([*of_name, *rest], seed=1)
    assert [lesson.prompt.image.tobytes() for lesson in again[:4]] == [
        lesson.prompt.image.tobytes() for lesson in changed[:4]
    ]
