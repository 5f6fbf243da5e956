from __future__ import annotations

import itertools

import numpy as np
import pytest

from peft_space.testbed.bestiary import CREATURES, FAMILIES, HYBRIDS, OBJECTS, SCENES, Recipe, Scene
from peft_space.testbed.drawing import SIZE, draw


def pixels(scene: Scene, seed: int = 0) -> np.ndarray:
    return np.asarray(draw(scene, np.random.default_rng(seed)), dtype=float)


@pytest.mark.parametrize("background", range(len(SCENES)))
def test_everything_can_be_drawn_before_every_background(background):
    recipes = [one.recipe for one in CREATURES] + list(HYBRIDS[::9])
    scenes = [Scene(recipe, None, 0, background) for recipe in recipes]
    scenes += [Scene(None, thing, 3, background) for thing in (None, *range(len(OBJECTS)))]
    for number, scene in enumerate(scenes):
        image = draw(scene, np.random.default_rng(number))
        assert (image.size, image.mode) == ((SIZE, SIZE), "RGB")


def test_a_picture_is_given_by_its_scene_and_seed():
    scene = Scene(CREATURES[0].recipe, None, 0, 0)
    assert np.array_equal(pixels(scene, 1), pixels(scene, 1))
    assert not np.array_equal(pixels(scene, 1), pixels(scene, 2))


@pytest.mark.parametrize("family", range(len(FAMILIES)))
def test_every_attribute_changes_the_picture(family):
    looks = {}
    for indices in itertools.product(range(3), range(3), range(3)):
        # one rng state for all: pose, light and background are the same, so that what differs is the recipe
        looks[indices] = pixels(Scene(Recipe(family, *indices), None, 6, 5))
    for (a, first), (b, second) in itertools.combinations(looks.items(), 2):
        if sum(x != y for x, y in zip(a, b, strict=True)) == 1:
            changed = (np.abs(first - second).max(axis=2) > 60).sum()
            assert changed >= 8, f"{a} and {b} differ in {changed} pixels"


def test_colours_and_objects_change_the_picture():
    for make in (lambda k: Scene(CREATURES[0].recipe, None, k, 0), lambda k: Scene(None, k, 0, 0)):
        looks = [pixels(make(k)) for k in range(7)]
        for first, second in itertools.combinations(looks, 2):
            assert (np.abs(first - second).max(axis=2) > 40).sum() > 40
