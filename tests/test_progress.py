import pytest

from peft_space.progress import Stages, advance, quietly


def test_a_listener_hears_every_stage_begin_go_on_and_end():
    heard = []
    stages = Stages(lambda *how_far: heard.append(how_far))
    with stages.stage("anchors"):
        advance("likelihood", 3, 8)
    with stages.stage("training"):
        pass
    assert heard == [
        ("anchors", "", 0, 1),
        ("anchors", "likelihood", 3, 8),
        ("anchors", "", 1, 1),
        ("training", "", 0, 1),
        ("training", "", 1, 1),
    ]
    assert list(stages.seconds) == ["anchors", "training"] and all(s >= 0 for s in stages.seconds.values())


def test_without_a_listener_stages_are_timed_all_the_same():
    stages = Stages()
    with stages.stage("anchors"):
        advance("likelihood", 3, 8)
    assert list(stages.seconds) == ["anchors"]


def test_outside_of_a_stage_nobody_hears():
    heard = []
    with Stages(lambda *how_far: heard.append(how_far)).stage("anchors"):
        pass
    advance("likelihood", 3, 8)
    assert len(heard) == 2


def test_a_stage_that_fails_is_neither_timed_nor_ended():
    heard = []
    stages = Stages(lambda *how_far: heard.append(how_far))
    with pytest.raises(ValueError), stages.stage("anchors"):
        raise ValueError
    advance("likelihood", 3, 8)
    assert stages.seconds == {} and heard == [("anchors", "", 0, 1)]


def test_what_is_done_quietly_is_not_heard():
    heard = []
    with Stages(lambda *how_far: heard.append(how_far[1])).stage("training"):
        with quietly():
            advance("likelihood", 3, 8)
        advance("steps", 1, 2)
    assert heard == ["", "steps", ""]


def test_a_job_inside_another_reports_to_its_own_listener():
    outer, inner = [], []
    with Stages(lambda *how_far: outer.append(how_far)).stage("exam"):
        with Stages(lambda *how_far: inner.append(how_far)).stage("anchors"):
            advance("likelihood", 1, 2)
        with Stages().stage("silent"):
            advance("likelihood", 1, 2)
        advance("answers", 5, 6)
    assert [how_far[1] for how_far in inner] == ["", "likelihood", ""]
    assert outer == [("exam", "", 0, 1), ("exam", "answers", 5, 6), ("exam", "", 1, 1)]
