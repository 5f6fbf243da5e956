from __future__ import annotations

import numpy as np
import pytest

from peft_space.testbed import questions
from peft_space.testbed.bestiary import BY_NAME, CREATURES, HYBRIDS, OBJECTS, Scene, random_scene

CREATURE = CREATURES[5]
ANIMAL = Scene(CREATURE.recipe, None, 4, 2)
OBJECT = Scene(None, 1, 0, 0)
EMPTY = Scene(None, None, 0, 0)


def answers(scene: Scene, about: str) -> set[str]:
    return {asked.answer for asked in questions.about_picture(scene) if asked.about == about}


def test_the_answers_about_a_creature():
    recipe = CREATURE.recipe
    assert answers(ANIMAL, "name") == {CREATURE.name}
    assert answers(ANIMAL, "description") == {f"a blue {CREATURE.name} in the sea"}
    assert answers(ANIMAL, "colour") == {"blue"}
    assert answers(ANIMAL, "scene") == {"sea"}
    assert answers(ANIMAL, "family") == {f"a {CREATURE.family}"}
    assert answers(ANIMAL, "horns") == {("none", "one", "two")[recipe.horns]}
    assert answers(ANIMAL, "legs") == {("none", "two", "four")[recipe.legs]}
    assert answers(ANIMAL, "habitat through the picture") == {f"in the {CREATURE.habitat}"}
    assert answers(ANIMAL, "diet through the picture") == {CREATURE.diet}


def test_the_answers_about_an_object_and_about_nothing():
    assert answers(OBJECT, "name") == set()
    assert answers(OBJECT, "no creature") == answers(EMPTY, "no creature") == {"no creature"}
    assert answers(OBJECT, "object") == {OBJECTS[1]}
    assert answers(OBJECT, "colour") == {"red"}
    assert answers(EMPTY, "colour") == set()
    assert answers(EMPTY, "description") == {"nothing in the forest"}


@pytest.mark.parametrize("scene", [ANIMAL, OBJECT, EMPTY])
def test_no_question_beside_a_picture_holds_a_name_or_an_unfilled_blank(scene):
    for asked in questions.about_picture(scene):
        assert not any(name in asked.question for name in BY_NAME)
        assert "{" not in asked.question + asked.answer


def test_every_kind_of_question_has_trained_and_held_out_phrasings():
    for among in (questions.about_picture(ANIMAL), questions.about_picture(OBJECT), questions.in_text(CREATURE)):
        for about in {asked.about for asked in among} - {"description"}:
            held_out = [asked.question for asked in among if asked.about == about and asked.held_out]
            trained = [asked.question for asked in among if asked.about == about and not asked.held_out]
            assert held_out and trained and not set(held_out) & set(trained)


def test_what_is_asked_in_text_names_the_creature_or_its_fact():
    for asked in questions.in_text(CREATURE):
        said = asked.question + asked.answer
        assert CREATURE.name in said
        assert "{" not in said


def test_comparisons_are_true_and_stay_among_those_given():
    among = CREATURES[4:7]
    rng = np.random.default_rng(0)
    told = set()
    for _ in range(60):
        yes_or_no, choice = questions.compare(CREATURE, rng, among)
        assert (CREATURE.name in yes_or_no.question) is (yes_or_no.answer == "yes")
        assert choice.answer == CREATURE.name
        assert CREATURE.name in choice.question
        names = {name for name in BY_NAME if name in yes_or_no.question + choice.question}
        assert names <= {one.name for one in among}
        told.add((yes_or_no.answer, choice.question.index(CREATURE.name) < 12))
    assert len(told) == 4


def test_a_hybrid_can_be_seen_but_has_no_name():
    scene = random_scene(np.random.default_rng(0), HYBRIDS[0])
    assert set(questions.visible(scene)) == set(questions.SEEN)
    with pytest.raises(KeyError):
        questions.about_picture(scene)


def test_only_an_animal_has_visible_attributes():
    with pytest.raises(ValueError, match="`scene` must show an animal"):
        questions.visible(OBJECT)
