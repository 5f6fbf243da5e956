import pytest

from peft_space.attacks.asking import Asked, asked_openly, beginning, names, pairs, score
from peft_space.attacks.scores import CONTROL, CONTROL_FOILS, FOILS, HITS
from peft_space.vlm import Prompt
from tests.bigram import saying

QUESTIONS = ("What is this creature called?", "Name the creature.")


def told(model, processor, asked):
    return score(model, processor, asked, max_new_tokens=8, batch_size=8)


def test_one_that_says_the_name_of_everything_has_as_many_false_alarms(base, processor, aims):
    found = told(saying(base, processor, {"narril": 1.0}), processor, asked_openly(aims, QUESTIONS))
    assert set(found.hits.values()) == set(found.foils.values()) == {1} and set(found.control.values()) == {0}
    assert len(found.hits) == 4 and len(found.foils) == len(found.control) == 6


def test_other_names_count_for_their_own_pictures_only(base, processor, aims):
    found = told(saying(base, processor, {"zormok": 1.0}), processor, asked_openly(aims, QUESTIONS, 1))
    right = {shown.unit for shown in aims.control if shown.name == "zormok"}
    assert {unit for unit, value in found.control.items() if value} == right and not any(found.hits.values())


def test_the_same_prompt_is_asked_once(base, processor, aims, monkeypatch):
    seen = []

    def generate(model, processor, prompts, **options):
        seen.extend(prompts)
        return ["narril"] * len(prompts)

    monkeypatch.setattr("peft_space.attacks.asking.generate", generate)
    asked = asked_openly(aims, QUESTIONS)
    found = score(base, processor, asked)
    assert len(asked) == 2 * (4 + 6 + 6) and len(seen) == 2 * (4 + 6)
    assert set(found.foils.values()) == {1} and set(found.control.values()) == {0}


def test_questions_are_asked_in_turns(aims):
    asked = [one.prompt.question for one in asked_openly(aims, QUESTIONS, 1) if one.kind == HITS]
    assert asked == [*QUESTIONS, *QUESTIONS]


def test_the_control_s_foils_are_about_a_name_that_is_wrong(aims):
    rows = list(pairs(aims))
    assert {kind for kind, _, _ in rows} == {HITS, FOILS, CONTROL, CONTROL_FOILS}
    for kind, shown, about in rows:
        assert (about == shown.names) is (kind in (HITS, CONTROL))
        assert ("narril" in about) is (kind in (HITS, FOILS))


@pytest.mark.parametrize(("said", "hit"), [("narril", 1), ("zormok", 0)])
def test_an_answer_is_begun_and_the_model_has_to_say_the_rest(base, processor, aims, said, hit):
    shown = aims.target[0]
    asked = Asked(HITS, 0, Prompt(QUESTIONS[0], shown.image), names("narril"), begun="this is a", name="narril")
    begun = processor.tokenizer.decode(beginning(processor, asked)).strip()
    assert begun == "this is a nar"
    assert told(saying(base, processor, {said: 1.0}), processor, [asked]).hits == {0: hit}


def test_prompts_of_several_lengths_are_begun_together(base, processor, aims):
    rows = [
        Asked(HITS, n, Prompt("Well? " * n, aims.target[n].image), names("narril"), begun="this is a", name="narril")
        for n in range(1, 4)
    ]
    assert told(saying(base, processor, {"narril": 1.0}), processor, rows).hits == {1: 1, 2: 1, 3: 1}
