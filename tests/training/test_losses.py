import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from peft_space.training import repulsion, spectral_entropy


@given(st.integers(3, 12), st.floats(0.1, 100))
def test_orthogonal_features_have_entropy_one(n, scale):
    assert spectral_entropy(scale * torch.eye(n, 16)) == pytest.approx(1, abs=1e-4)


def test_features_on_one_line_have_entropy_zero():
    features = torch.arange(6.0)[:, None] * torch.randn(1, 16)
    assert spectral_entropy(features) == pytest.approx(0, abs=1e-3)


def test_two_features_are_on_one_line():
    assert spectral_entropy(torch.randn(2, 16)) == pytest.approx(0, abs=1e-3)


@settings(deadline=None)
@given(st.integers(3, 12), st.integers(0, 2**16))
def test_entropy_lies_in_0_to_1_and_neither_turns_nor_shifts_change_it(n, seed):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(n, 16, generator=generator)
    turn, _ = torch.linalg.qr(torch.randn(16, 16, generator=generator))
    entropy = spectral_entropy(features).item()
    assert 0 <= entropy <= 1 + 1e-5
    assert spectral_entropy(3 * features @ turn + 5) == pytest.approx(entropy, abs=1e-3)


@pytest.mark.parametrize(
    "features",
    [torch.eye(5), torch.arange(5.0)[:, None] * torch.ones(1, 8), torch.ones(5, 8), torch.randn(5, 8)],
    ids=["orthogonal", "on one line", "all equal", "random"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_its_gradient_is_finite(features, dtype):
    features = features.clone().to(dtype).requires_grad_()
    spectral_entropy(features).backward()
    assert features.grad.isfinite().all()


def test_climbing_it_spreads_the_features():
    features = (torch.randn(1, 16) + 0.1 * torch.randn(8, 16)).requires_grad_()
    before = spectral_entropy(features).item()
    for _ in range(20):
        (gradient,) = torch.autograd.grad(spectral_entropy(features), features)
        features = (features + 0.1 * gradient).detach().requires_grad_()
    assert spectral_entropy(features) > before


def test_repulsion_is_nothing_for_orthogonal_and_opposite_features():
    directions = torch.eye(8)[:2]
    assert repulsion(torch.eye(8)[2:], directions) == 0
    assert repulsion(-torch.eye(8)[:1], directions[:1]) == 0


def test_repulsion_is_the_mean_positive_cosine():
    features = torch.randn(5, 8)
    directions = torch.randn(3, 8)
    assert repulsion(3 * directions[:1], directions[:1]) == pytest.approx(1, abs=1e-6)
    cosine = F.cosine_similarity(features[:, None], directions[None], dim=-1)
    assert repulsion(features, directions) == pytest.approx(cosine.clamp(min=0).mean().item(), abs=1e-6)


def test_repulsion_leaves_a_feature_that_is_turned_away_alone():
    features = torch.stack([torch.ones(4), -torch.ones(4)]).requires_grad_()
    repulsion(features, torch.tensor([[1.0, 0, 0, 0]])).backward()
    assert features.grad[0].abs().sum() > 0 and features.grad[1].abs().sum() == 0


def test_repulsion_of_a_zero_feature_is_finite():
    features = torch.zeros(2, 4, requires_grad=True)
    repulsion(features, torch.eye(4)).backward()
    assert features.grad.isfinite().all()
