import pytest

from peft_space.attacks.scores import CONTROL, CONTROL_FOILS, FOILS, HITS, Row, Scores

DRAWS = {"n_bootstrap": 200, "seed": 0}


def scores(hits, foils=(), control=(), control_foils=()):
    kinds = ((HITS, hits), (FOILS, foils), (CONTROL, control), (CONTROL_FOILS, control_foils))
    return Scores.of(Row(kind, place, value) for kind, values in kinds for place, value in enumerate(values))


def test_answers_about_one_picture_are_one_unit():
    found = Scores.of([Row(HITS, "a", 1), Row(HITS, "a", 0), Row(HITS, "b", 1)])
    assert found.hits == {"a": 0.5, "b": 1} and found.units == 2 and found.foils == {}


def test_a_model_that_says_the_name_of_everything_tells_nothing():
    assert scores([1, 1, 1, 1], [1, 1, 1, 1]).told(**DRAWS).value == 0
    assert scores([1, 1, 0, 1], [0, 0, 1, 0]).told(**DRAWS).value == 0.5


def test_without_foils_hits_count_as_they_are_and_without_hits_nothing_is_known():
    assert scores([1, 0]).told(**DRAWS).value == 0.5
    assert scores([], [1]).told(**DRAWS) is None and scores([1]).kept(**DRAWS) is None


def test_the_control_is_judged_as_the_target_is():
    assert scores([1], [0], [1, 1, 1], [1, 1, 1]).kept(**DRAWS).value == 0
    assert scores([1], [0], [1, 1, 1], [0, 0, 0]).kept(**DRAWS).value == 1


def test_recovery_is_paired_and_counts_false_alarms_that_the_attack_adds():
    before, after = scores([0, 0, 0, 0], [0, 0]), scores([1, 1, 1, 1], [1, 0])
    recovered = after.recovered_from(before, **DRAWS)
    assert recovered.value == 0.5 and recovered.low <= 0.5 <= recovered.high
    assert after.recovered_from(after, **DRAWS).value == 0


def test_pictures_that_were_not_asked_about_before_do_not_count_as_recovered():
    before, after = scores([0, 0]), scores([0, 0, 1])
    assert after.recovered_from(before, **DRAWS).value == 0


def test_averages_over_time_are_weighted_picture_by_picture():
    mean = Scores.averaged([scores([0, 0]), scores([1, 0])], [0.25, 0.75])
    assert mean.hits == {0: 0.75, 1: 0}
    with pytest.raises(ValueError, match=r"`weights` must add up to 1, one for each of 1; got \[0.5\]"):
        Scores.averaged([scores([1])], [0.5])
