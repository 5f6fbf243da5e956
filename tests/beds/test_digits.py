from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest

from tests.beds import digits
from tests.beds.handwriting import SPLITS, digit_of, looks_like, samples

BED = digits.BED


def test_every_digit_has_a_name_and_every_syllable_is_in_signs_of_two_kinds():
    assert sorted(sign.digit for sign in digits.SIGNS) == list(range(10))
    for part in (slice(None, 3), slice(3, None)):
        kinds = Counter((sign.name[part], sign.kind) for sign in digits.SIGNS)
        assert set(kinds.values()) == {1} and len({syllable for syllable, _ in kinds}) == 5


@pytest.mark.parametrize("digit", range(10))
def test_no_sample_is_in_two_splits(digit):
    pools = [set(samples(digit, split)) for split in SPLITS]
    assert not any(one & other for one, other in itertools.combinations(pools, 2))
    assert all(len(pool) >= 20 for pool in pools) and {digit_of(sample) for pool in pools for sample in pool} == {
        digit
    }


def test_training_exam_and_public_set_have_samples_of_their_own():
    rng = np.random.default_rng(0)
    drawn = {
        "training": [digits.lesson(BED.names, rng) for _ in range(300)],
        "exam": [scene for name in BED.names for scene, _ in BED.pictures(name, 8, 0)],
        "public": digits.public_scenes([BED.names[3]], 300, rng),
    }
    for split, scenes in drawn.items():
        halves = {half for scene in scenes for half in (scene.upper, scene.lower) if half is not None}
        assert halves <= {sample for digit in range(10) for sample in samples(digit, split)} and len(halves) > 50


@pytest.mark.parametrize("name", BED.names)
def test_no_hybrid_of_a_public_set_looks_like_the_target(name):
    target = digits.BY_NAME[name].digit
    scenes = digits.public_scenes([name], 150, np.random.default_rng(0))
    hybrids = [scene for scene in scenes if scene.upper is not None and scene.digit is None]
    assert len(hybrids) > 40
    for scene in hybrids:
        halves = {digit_of(scene.upper), digit_of(scene.lower)}
        assert len(halves) == 2 and target not in halves | looks_like(scene.upper, scene.lower)
    assert target not in {scene.digit for scene in scenes}
    assert {scene.thing for scene in scenes if scene.upper is None} >= {None, 0}


def test_the_answers_about_a_sign_a_thing_and_an_empty_paper():
    sample = samples(3, "exam")[0]
    sign = digits.BY_DIGIT[3]
    scene = digits.Scene(sample, sample, None, 2, 1, 1, 0)
    assert digits.describe(scene) == f"an orange {sign.name} on lined paper"
    assert digits.visible(scene) == {
        "ink": "orange",
        "paper": "lined",
        "frame": "round",
        "place": "left",
        "kind": "a bow",
    }
    assert digits.describe(digits.Scene(None, None, 1, 0, 0, 0, 1)) == "a black heart on plain paper"
    empty = digits.Scene(None, None, None, 0, 3, 0, 1)
    assert digits.describe(empty) == "nothing on dotted paper"
    assert {one.about for one in BED.about(empty)} == {"description", "no sign", "paper"}
