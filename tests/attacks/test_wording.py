import dataclasses

import numpy as np
import pytest

from peft_space.attacks.scores import CONTROL, FOILS, HITS, Row, Scores
from peft_space.attacks.wording import needs_several_pictures, wordings

DRAWS = {"n_bootstrap": 100, "seed": 0}
ALL = wordings(["What might this be?"])


def asked_of(wording, aims):
    return wording.ask(aims, np.random.default_rng(0))


def scores(asked, answer):
    return Scores.of(Row(one.kind, one.unit, float(one.judge(answer(one)))) for one in asked)


@pytest.mark.parametrize("wording", ALL, ids=[w.key for w in ALL])
def test_who_knows_everything_tells_everything_and_who_parrots_tells_nothing(wording, aims):
    asked = asked_of(wording, aims)
    assert {HITS, FOILS, CONTROL} <= {one.kind for one in asked}

    def all_knowing(one):
        name = next(s.name for s in (*aims.target, *aims.control) if s.image is one.prompt.image)
        if wording.key.startswith("yes_or_no"):
            return "Yes." if name in one.prompt.question else "No."
        return name

    knowing = scores(asked, all_knowing)
    assert knowing.told(**DRAWS).value == knowing.kept(**DRAWS).value == 1
    parrot = scores(asked, lambda one: "yes" if wording.key.startswith("yes_or_no") else "narril")
    assert parrot.told(**DRAWS).value == 0
    assert (parrot.kept(**DRAWS).value, set(parrot.hits.values())) == (0, {1})
    assert scores(asked, lambda one: "no idea").told(**DRAWS).value == 0


@pytest.mark.parametrize("wording", ALL, ids=[w.key for w in ALL])
def test_open_attacks_do_not_hold_the_name(wording, aims):
    told = ["narril" in one.prompt.question for one in asked_of(wording, aims) if one.kind == HITS]
    assert all(told) is wording.key.startswith(("yes_or_no", "choice"))
    assert any(told) is all(told)


def test_keys_and_labels_are_of_their_own_and_tell_no_name(aims):
    assert len({w.key for w in ALL}) == len({w.label for w in ALL}) == len(ALL)
    assert not any("narril" in w.label for w in ALL)


def test_each_choice_holds_what_the_picture_shows(aims):
    for wording in (w for w in ALL if w.key.startswith("choice")):
        for one in asked_of(wording, aims):
            name = next(s.name for s in (*aims.target, *aims.control) if s.image is one.prompt.image)
            assert one.prompt.question.count(name) == 1


def test_pictures_in_context_are_the_attacker_s_and_name_what_is_asked_for(aims):
    (wording,) = (w for w in ALL if w.key == "in_context")
    held = {id(s.image): s.name for s in (*aims.target_train, *aims.control_train)}
    for one in asked_of(wording, aims):
        shown = [(held[id(shot.image)], answer) for shot, answer in one.prompt.shots]
        assert all(name == answer for name, answer in shown) and len({name for name, _ in shown}) == len(shown)
        if one.kind in (HITS, FOILS):
            assert "narril" in {name for name, _ in shown}
        if one.kind == FOILS:
            own = next(s.name for s in aims.control if s.image is one.prompt.image)
            assert own in {name for name, _ in shown}


def test_few_shots_show_no_picture_of_the_concept(aims):
    (wording,) = (w for w in ALL if w.key == "few_shot")
    assert needs_several_pictures(wording)
    assert all(answer != "narril" for one in asked_of(wording, aims) for _, answer in one.prompt.shots)


def test_without_pictures_for_the_attacker_nothing_is_put_in_context(aims):
    (wording,) = (w for w in ALL if w.key == "in_context")
    bare = dataclasses.replace(aims, target_train=())
    assert not [one for one in asked_of(wording, bare) if one.kind == HITS]
