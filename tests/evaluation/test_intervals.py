import math

import numpy as np
import pytest

from peft_space.evaluation.intervals import Estimate, auc_estimate, difference, halved_estimate, mean_estimate


def test_the_interval_holds_the_true_mean_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    held = 0
    for trial in range(200):
        values = rng.normal(3, 1, 40)
        estimate = mean_estimate(values, range(40), n_bootstrap=400, seed=trial)
        held += estimate.low <= 3 <= estimate.high
    assert 0.88 <= held / 200 <= 0.99


def test_it_is_as_wide_as_the_standard_error_says():
    values = np.random.default_rng(1).normal(0, 2, 400)
    estimate = mean_estimate(values, range(400))
    assert estimate.value == pytest.approx(values.mean())
    assert estimate.high - estimate.low == pytest.approx(2 * 1.96 * 2 / 20, rel=0.1)


def test_answers_about_one_picture_are_no_news():
    values = np.random.default_rng(2).normal(0, 1, 30)
    once = mean_estimate(values, range(30))
    tenfold = mean_estimate(values.repeat(10), np.arange(30).repeat(10))
    assert (tenfold.value, tenfold.low, tenfold.high) == pytest.approx((once.value, once.low, once.high))
    apart = mean_estimate(values.repeat(10), range(300))
    assert apart.high - apart.low < 0.5 * (once.high - once.low)


def test_a_seed_gives_one_interval():
    values = np.random.default_rng(3).random(20)
    first, again, other = (mean_estimate(values, range(20), seed=seed) for seed in (0, 0, 1))
    assert first == again != other


@pytest.mark.parametrize("n", [1, 3, 24])
def test_shares_that_are_all_the_same_have_the_exact_binomial_interval(n):
    none, every = (mean_estimate([value] * n, range(n), bounds=(0, 1)) for value in (0.0, 1.0))
    # the share at which seeing none in n has a chance of 2.5 %
    assert (none.value, none.low) == (0, 0) and (1 - none.high) ** n == pytest.approx(0.025)
    assert (every.value, every.high) == (1, 1) and every.low == pytest.approx(1 - none.high)
    change = mean_estimate([0.0] * n, range(n), bounds=(-1, 1))
    assert (change.low, change.high) == pytest.approx((-none.high, none.high))


def test_one_unit_says_nothing_of_how_sure_it_is():
    estimate = mean_estimate([0.2, 0.4], ["a", "a"])
    assert estimate.value == pytest.approx(0.3) and math.isnan(estimate.low) and math.isnan(estimate.high)


@pytest.mark.parametrize(("values", "units"), [([], []), ([1.0], [1, 2])])
def test_values_without_units(values, units):
    with pytest.raises(ValueError, match="`values`"):
        mean_estimate(values, units)


def test_halves_scatter_as_a_bootstrap_does():
    rng = np.random.default_rng(4)
    values = rng.normal(0, 1, 100)
    halves = [rng.permutation(values)[:50].mean() for _ in range(4000)]
    estimate, bootstrap = halved_estimate(float(values.mean()), halves), mean_estimate(values, range(100))
    assert estimate.value == bootstrap.value
    assert estimate.high - estimate.low == pytest.approx(bootstrap.high - bootstrap.low, rel=0.15)


def test_the_difference_of_two_figures_is_as_wide_as_both_make_it():
    found = difference(Estimate(0.75, 0.5, 1.0), Estimate(0.5, 0.25, 0.75))
    assert found == Estimate(0.25, 0.25 - math.hypot(0.25, 0.25), 0.25 + math.hypot(0.25, 0.25))
    sure = difference(Estimate(0.5, 0.25, 0.75), Estimate(0.0, 0.0, 0.0))
    assert sure == Estimate(0.5, 0.25, 0.75)


def test_the_difference_holds_the_true_one_about_as_often_as_it_says():
    rng = np.random.default_rng(2)
    held = 0
    for trial in range(200):
        sides = (mean_estimate(rng.normal(m, 1, 40), range(40), n_bootstrap=300, seed=trial) for m in (2, 1))
        found = difference(*sides)
        held += found.low <= 1 <= found.high
    assert 0.88 <= held / 200 <= 0.99


def single(values):
    return {number: [value] for number, value in enumerate(values)}


def test_the_area_is_the_chance_of_a_positive_above_a_negative():
    found = auc_estimate(single([3, 1]), {10: [2], 11: [0]}, n_bootstrap=100)
    assert found.value == 0.75 and 0 <= found.low <= 0.75 <= found.high <= 1
    assert auc_estimate(single([1, 1]), single([1, 1]), n_bootstrap=100).value == 0.5


def test_units_with_more_scores_weigh_more():
    found = auc_estimate({0: [1, 1, 1], 1: [-1]}, {2: [0]}, n_bootstrap=100)
    assert found.value == 0.75


def test_where_all_are_on_one_side_the_interval_is_that_of_as_many_units():
    found = auc_estimate(single([2, 3, 4, 5]), {9: [0], 8: [1]}, n_bootstrap=100)
    assert (found.value, found.high) == (1, 1) and found.low == pytest.approx(0.025 ** (1 / 2))
    assert auc_estimate(single([0]), {9: [1]}, n_bootstrap=100).low == 0


def test_the_area_s_interval_holds_the_true_one_about_as_often_as_it_says():
    rng = np.random.default_rng(3)
    # P(X > Y) of N(1, 1) and N(0, 1): Phi(1 / sqrt 2)
    true, held = 0.5 * (1 + math.erf(0.5)), 0
    for trial in range(100):
        sides = single(rng.normal(1, 1, 30)), {100 + n: [x] for n, x in enumerate(rng.normal(0, 1, 30))}
        found = auc_estimate(*sides, n_bootstrap=200, seed=trial)
        held += found.low <= true <= found.high
    assert held >= 85


def test_an_area_needs_both_sides():
    with pytest.raises(ValueError, match="`positives` and `negatives` must each hold a unit; got 1 and 0"):
        auc_estimate(single([1]), {})
