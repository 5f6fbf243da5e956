import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from tests.benchmarks.baselines import losses

SEEDS = st.integers(0, 2**16)


def drawn(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def gradient(loss, x):
    (found,) = torch.autograd.grad(loss(x), x)
    return found


def test_npo_by_hand():
    log_p, reference = torch.tensor([math.log(0.2), math.log(0.5)]), torch.tensor([math.log(0.4), math.log(0.5)])
    # log sigmoid(-log(p / p_ref)) at beta 1: log(1 / (1 + p / p_ref))
    expected = -2 * (math.log(1 / 1.5) + math.log(1 / 2)) / 2
    assert losses.npo(log_p, reference, 1.0) == pytest.approx(expected)


@settings(deadline=None)
@given(SEEDS)
def test_npo_becomes_gradient_ascent_as_beta_falls(seed):
    log_p, reference = drawn(seed, 2, 6).requires_grad_()
    ascent = gradient(lambda x: x.mean(), log_p)
    found = gradient(lambda x: losses.npo(x, reference.detach(), 1e-5), log_p)
    assert torch.allclose(found, ascent, rtol=1e-3)
    # at a beta that counts the answers are told apart, by how far each is from what the base model says
    far = gradient(lambda x: losses.npo(x, reference.detach(), 3.0), log_p)
    assert far.argsort().equal((log_p - reference).detach().argsort())


@settings(deadline=None)
@given(SEEDS, st.floats(0.05, 4))
def test_npo_weighs_each_answer_as_the_paper_says(seed, beta):
    log_p, reference = drawn(seed, 2, 6).requires_grad_()
    found = gradient(lambda x: losses.npo(x, reference.detach(), beta), log_p)
    p, p_ref = log_p.detach().exp() ** beta, reference.detach().exp() ** beta
    assert torch.allclose(found, 2 * p / (p + p_ref) / 6, rtol=1e-3, atol=1e-6)


def test_npo_has_a_floor_where_gradient_ascent_has_none():
    assert losses.npo(torch.tensor([-1e4]), torch.tensor([-1.0]), 0.1) == pytest.approx(0, abs=1e-6)


def test_simnpo_by_hand():
    log_p, lengths = torch.tensor([-3.0, -8.0]), torch.tensor([2, 4])
    told = [math.log(1 / (1 + math.exp(-(2.5 * per_token - 0.5)))) for per_token in (1.5, 2.0)]
    assert losses.simnpo(log_p, lengths, 2.5, 0.5) == pytest.approx(-2 / 2.5 * sum(told) / 2, rel=1e-5)


@settings(deadline=None)
@given(SEEDS, st.integers(2, 9))
def test_simnpo_does_not_tell_a_long_answer_from_a_short_one(seed, times):
    log_p, lengths = -drawn(seed, 6).abs(), torch.tensor([1, 2, 3, 4, 5, 6])
    short, long = (losses.simnpo(n * log_p, n * lengths, 2.5, 0.0) for n in (1, times))
    assert torch.allclose(short, long, rtol=1e-4)
    assert losses.npo(times * log_p, torch.zeros(6), 2.5) < losses.npo(log_p, torch.zeros(6), 2.5)


@settings(deadline=None)
@given(SEEDS)
def test_divergence_is_that_of_torch_and_nothing_between_equals(seed):
    logits, reference = drawn(seed, 2, 5, 7)
    now, before = (torch.distributions.Categorical(logits=some) for some in (logits, reference))
    expected = torch.distributions.kl_divergence(before, now).mean()
    assert torch.allclose(losses.divergence(logits, reference), expected, rtol=1e-3, atol=1e-5)
    assert losses.divergence(logits, logits + 3) == pytest.approx(0, abs=1e-6)
    still = logits.clone().requires_grad_()
    assert gradient(lambda x: losses.divergence(x, logits), still).abs().max() < 1e-6


def test_misdirection_moves_states_to_the_direction_at_the_length_that_is_asked_for():
    reference, direction = drawn(0, 4, 8), F.normalize(drawn(1, 8), dim=0)
    states = reference.clone().requires_grad_()
    for _ in range(200):
        states = (
            states - 2.0 * gradient(lambda x: losses.misdirection(x, reference, direction, 5.0), states)
        ).detach()
        states.requires_grad_()
    assert torch.allclose(states, 5 * reference.norm(dim=1, keepdim=True) * direction, atol=1e-3)


@settings(deadline=None)
@given(SEEDS)
def test_masked_tokens_and_names_feel_nothing_of_the_dual_masked_divergence(seed):
    logits, reference = drawn(seed, 2, 6, 9)
    hidden, unsaid = torch.tensor([True, False, False, True, False, False]), torch.tensor([2, 5])
    moved = logits.clone().requires_grad_()
    felt = gradient(lambda x: losses.dual_masked_divergence(x, reference, hidden, unsaid), moved)
    assert (felt[hidden] == 0).all() and (felt[:, unsaid] == 0).all()
    spoken = torch.tensor([0, 1, 3, 4, 6, 7, 8])
    assert (felt[~hidden][:, spoken].abs().sum(1) > 0).all()
    rest = losses.divergence(logits[~hidden][:, spoken], reference[~hidden][:, spoken])
    assert torch.allclose(losses.dual_masked_divergence(logits, reference, hidden, unsaid), rest)
