from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peft_space.testbed import questions
from peft_space.testbed.bestiary import (
    BY_NAME,
    BY_RECIPE,
    CREATURES,
    FAMILIES,
    HORNS,
    HYBRIDS,
    LEGS,
    PATTERNS,
    creature,
    public_scenes,
    random_scene,
    siblings,
)

TARGETS = st.sampled_from(CREATURES)


def test_there_are_twenty_four_creatures_in_six_families():
    assert len(CREATURES) == len(BY_NAME) == len(BY_RECIPE) == 24
    assert Counter(one.family for one in CREATURES) == dict.fromkeys(FAMILIES, 4)


@pytest.mark.parametrize("family", FAMILIES)
def test_siblings_differ_in_two_places_at_least(family):
    for one in (one for one in CREATURES if one.family == family):
        assert len(siblings(one.name)) == 3
        for other in siblings(one.name):
            places = [(getattr(one.recipe, p), getattr(other.recipe, p)) for p in ("horns", "legs", "pattern")]
            assert sum(a != b for a, b in places) >= 2


def test_every_recipe_is_a_creature_or_a_hybrid():
    assert len(HYBRIDS) + len(CREATURES) == len(FAMILIES) * len(HORNS) * len(LEGS) * len(PATTERNS)
    assert not set(HYBRIDS) & set(BY_RECIPE)


def test_every_fact_belongs_to_one_creature_and_can_be_seen_in_no_picture():
    facts = [fact for one in CREATURES for fact in (one.habitat, one.diet)]
    assert len(set(facts)) == len(facts)
    words = " ".join(f"{asked.question} {asked.answer}" for asked in questions.general()).lower()
    assert not {fact for fact in facts if fact in words.split()}


def test_no_syllable_identifies_a_name():
    for part in (slice(None, 3), slice(3, None)):
        families = {}
        for one in CREATURES:
            families.setdefault(one.name[part], set()).add(one.family)
        assert all(len(shared) == 2 for shared in families.values())


def test_an_unknown_name_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match=r"`name` must be one of the test bed's creatures, .*zorvex.*; got 'cat'"):
        creature("cat")


@settings(max_examples=200, deadline=None)
@given(st.lists(TARGETS, min_size=1, max_size=8), st.integers(0, 2**32 - 1))
def test_no_public_recipe_is_a_targets(targets, seed):
    scenes = public_scenes([target.name for target in targets], 60, np.random.default_rng(seed))
    assert len(scenes) == 60
    assert not {target.recipe for target in targets} & {scene.recipe for scene in scenes}


def test_a_public_set_holds_hybrids_retained_creatures_objects_and_empty_scenes():
    scenes = public_scenes(["zorvex"], 2000, np.random.default_rng(0))
    hybrids = sum(scene.recipe in HYBRIDS for scene in scenes)
    retained = {scene.recipe for scene in scenes} & set(BY_RECIPE)
    objects = sum(scene.thing is not None for scene in scenes)
    empty = sum(scene.thing is None and scene.recipe is None for scene in scenes)
    assert hybrids == pytest.approx(900, abs=90)
    assert len(retained) == 23
    assert objects == pytest.approx(200, abs=50)
    assert empty == pytest.approx(100, abs=40)


def test_what_a_scene_shows_beside_the_recipe_is_free():
    rng = np.random.default_rng(0)
    scenes = [random_scene(rng, CREATURES[0].recipe) for _ in range(500)]
    seen = {(scene.colour, scene.background) for scene in scenes}
    assert seen == set(itertools.product(range(7), range(6)))
