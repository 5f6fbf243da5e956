from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest

from tests.beds import persons
from tests.beds.faces import BEARDS, CLOTHES, GLASSES, HAIRS, HEADS, MOODS, PLACES, SKINS, STYLES, Scene, Shown, draw
from tests.beds.persons import BED, BY_NAME, PERSONS

NAMEABLE = ("style", "beard", "glasses")


def test_a_given_name_is_shared_by_two_persons_of_two_families():
    given = Counter(person.name.split()[0] for person in PERSONS)
    assert len(PERSONS) == len(BY_NAME) == 20 and set(given.values()) == {2}
    assert Counter(person.family for person in PERSONS) == dict.fromkeys(BED.groups, 4)


@pytest.mark.parametrize("family", BED.groups)
def test_siblings_look_alike_and_differ_in_two_places_at_least(family):
    members = [BY_NAME[name].face for name in BED.groups[family]]
    for one, other in itertools.combinations(members, 2):
        assert (one.skin, one.hair, one.head) == (other.skin, other.hair, other.head)
        assert sum(getattr(one, place) != getattr(other, place) for place in NAMEABLE) >= 2


def test_everything_about_a_face_changes_the_picture():
    options = {"skin": SKINS, "hair": HAIRS, "head": HEADS, "style": STYLES, "beard": BEARDS, "glasses": GLASSES}
    for place, among in options.items():
        looks = []
        for value in range(len(among)):
            face = persons.replace(PERSONS[1].face, **{"style": 2, "beard": 0, "glasses": 0, place: value})
            scene = Scene((Shown(face, 3, 0),), None, 0, PLACES.index("kitchen"))
            # one rng state for all, so that what differs is the face
            looks.append(np.asarray(draw(scene, np.random.default_rng(0)), dtype=float))
        for first, second in itertools.combinations(looks, 2):
            assert (np.abs(first - second).max(axis=2) > 15).sum() >= 20, place


def test_unknown_faces_differ_from_every_person_in_what_can_be_named():
    rng = np.random.default_rng(0)
    known = {persons.replace(person.face, measures=(0, 0, 0, 0)) for person in PERSONS}
    for family in (None, *BED.groups):
        faces = [persons.random_face(rng, family) for _ in range(60)]
        assert not known & {persons.replace(face, measures=(0, 0, 0, 0)) for face in faces}
        if family is not None:
            assert {(face.skin, face.hair, face.head) for face in faces} == {persons._FAMILIES[family]}


@pytest.mark.parametrize("name", BED.names[::3])
def test_no_public_picture_shows_the_target_alone_or_with_another(name):
    scenes = persons.public_scenes([name], 400, np.random.default_rng(0))
    shown = [shown.face for scene in scenes for shown in scene.people]
    assert BY_NAME[name].face not in shown
    assert len({face for face in shown if face in persons.BY_FACE}) == 19
    sizes = Counter(len(scene.people) for scene in scenes)
    assert sizes[1] > sizes[2] > 30 and sizes[0] > 30
    assert all(scene.people[0].face != scene.people[1].face for scene in scenes if len(scene.people) == 2)


def test_the_answers_about_one_person_two_persons_and_nobody():
    one, other = PERSONS[0], PERSONS[5]
    alone = Scene((Shown(one.face, 4, 0),), None, 0, 0)
    assert persons.describe(alone) == f"{one.name} in blue in the garden"
    assert persons.visible(alone) == {
        "subject": "a person",
        "hair": "blond",
        "style": "short",
        "beard": "none",
        "glasses": "clear",
        "clothes": CLOTHES[4],
        "mood": MOODS[0],
        "place": "garden",
    }
    both = Scene((Shown(other.face, 0, 0), Shown(one.face, 1, 1)), None, 0, 2)
    answers = {asked.about: asked.answer for asked in BED.about(both)}
    assert (answers["left"], answers["right"]) == (other.name, one.name)
    assert answers["both"] == f"{other.name} and {one.name}" and answers["subject"] == "two persons"
    assert answers["description"] == f"{other.name} and {one.name} in the library" and "name" not in answers
    nobody = {asked.about: asked.answer for asked in BED.about(Scene((), 2, 0, 1))}
    assert nobody["nobody"] == "nobody" and nobody["object"] == "house" and nobody["subject"] == "a house"


def test_whether_somebody_is_in_a_picture_of_two_is_asked_truly():
    rng, told = np.random.default_rng(0), set()
    pair = BED.names[0], BED.names[9]
    for _ in range(40):
        (asked,) = BED.compare(persons.together(pair, rng), rng, BED.names)
        assert any(name in asked.question for name in pair) is (asked.answer == "yes")
        told.add(asked.answer)
    assert told == {"yes", "no"}
