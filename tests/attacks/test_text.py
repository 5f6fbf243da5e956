import dataclasses

import pytest

from peft_space.attacks.scores import CONTROL, FOILS, HITS, Row, Scores
from peft_space.attacks.text import WRAPPERS, asked_in_text, telling_words

TELLING = {"narril": (("reef",),), "zormok": (("bog",),), "keltus": ((),)}


@pytest.mark.parametrize("key", WRAPPERS)
def test_the_words_that_tell_a_name_from_others_are_what_counts(concept, key):
    asked = asked_in_text(WRAPPERS[key][1], concept, TELLING)
    assert all("{" not in one.prompt.question and one.prompt.image is None for one in asked)
    said = {"narril": "in the reef", "zormok": "in the bog", "keltus": "in the sea"}

    def told(answers):
        rows = (Row(one.kind, one.unit, float(one.judge(answers[one.unit[1]]))) for one in asked)
        found = Scores.of(rows)
        return found.told(100, 0).value, found.kept(100, 0).value

    assert {one.kind for one in asked} == {HITS, FOILS, CONTROL}
    assert told(said) == (1, 1)
    assert told(dict.fromkeys(said, "in the reef")) == (0, 0)
    assert told(said | {"narril": "in the sea"}) == (0, 1)


def test_units_stay_the_same_under_every_wrapper(concept):
    units = [{one.unit for one in asked_in_text(text, concept, TELLING)} for _, text in WRAPPERS.values()]
    assert units[0] and all(some == units[0] for some in units)


def test_words_are_asked_for_of_each_name(base, processor, concept):
    two = dataclasses.replace(concept, text_questions=("Where does the {name} live?", "What does {name} eat?"))
    found = telling_words(base, processor, two, ("zormok", "keltus"))
    assert set(found) == {"narril", "zormok", "keltus"} and {len(words) for words in found.values()} == {2}
