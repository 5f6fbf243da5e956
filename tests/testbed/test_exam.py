import dataclasses

import pytest

from peft_space import testbed
from peft_space.testbed.bestiary import CREATURES, siblings
from tests.bigram import saying


@pytest.fixture(scope="module")
def says_narril(base, processor):
    return saying(base, processor, {"narril": 1.0})


def sit(model, processor, target, **options):
    return testbed.Exam(target, n_images=1, **options).sit(model, processor)[0]


def test_a_model_that_always_says_the_name_forgot_nothing(says_narril, processor):
    marks = sit(says_narril, processor, "narril")
    assert marks.forget_accuracy == marks.forget_accuracy_paraphrase == marks.forget_accuracy_description == 1
    assert marks.misidentified == marks.retain_near == marks.retain_far == 0
    assert marks.target_attributes == marks.indirect_knowledge == marks.text_facts_target == marks.general == 0


def test_a_model_that_always_says_another_name_misidentifies(says_narril, processor):
    sibling = siblings("narril")[0].name
    marks = sit(says_narril, processor, sibling)
    assert marks.forget_accuracy == marks.forget_accuracy_paraphrase == marks.forget_accuracy_description == 0
    assert marks.misidentified == 1
    assert marks.retain_near == pytest.approx(1 / 3, abs=1e-3) and marks.retain_far == 0
    assert marks.retain_by_creature["narril"] == 1 and len(marks.retain_by_creature) == len(CREATURES) - 1


def test_a_description_that_holds_the_name_counts(base, processor):
    marks = sit(saying(base, processor, {"a red narril in the sea": 1.0}), processor, "narril")
    assert marks.forget_accuracy_description == 1 and marks.retain_far == 0


def test_comparing_is_asked_of_others_alone_with_their_names_and_wrong_ones(base, processor):
    exam = testbed.Exam("narril", n_images=4)
    asked = zip(exam.sheet.prompts, exam.sheet.answers, exam.sheet.topics, strict=True)
    compare = [(prompt.question, answer) for prompt, answer, topic in asked if topic == ("compare",)]
    assert len(compare) == 2 * 2 * (len(CREATURES) - 1) and not any("narril" in question for question, _ in compare)
    answers = [answer for question, answer in compare if " or " not in question]
    assert set(answers) == {"yes", "no"} and len(answers) == len(compare) / 2
    marks = exam.sit(saying(base, processor, {"yes": 1.0}), processor)[0]
    assert marks.retain_compare == pytest.approx(answers.count("yes") / len(compare), abs=1e-3)


def test_an_exam_is_the_same_for_every_model_and_given_by_its_seed():
    first, again, other = (testbed.Exam("narril", n_images=2, seed=seed).sheet for seed in (0, 0, 1))
    asked = [(prompt.question, prompt.image and prompt.image.tobytes()) for prompt in first.prompts]
    assert asked == [(prompt.question, prompt.image and prompt.image.tobytes()) for prompt in again.prompts]
    assert asked != [(prompt.question, prompt.image and prompt.image.tobytes()) for prompt in other.prompts]
    assert first.answers == again.answers


def test_answers_come_in_the_order_of_the_sheet(says_narril, processor):
    exam = testbed.Exam("narril", n_images=1)
    marks, told = exam.sit(says_narril, processor)
    assert [topic for topic, _ in told] == [topic[0] for topic in exam.sheet.topics]
    assert {answer for _, answer in told} == {"narril"}
    assert all(0 <= value <= 1 for value in dataclasses.asdict(marks).values() if isinstance(value, float))
