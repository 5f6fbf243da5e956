import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from peft_space.subspace import DenseMoment, SketchedMoment, average, principal_subspace

quick = settings(max_examples=25, deadline=None)
seeds = st.integers(0, 10_000)
widths = st.integers(2, 40)


def moment_ref(x):
    return sum((torch.outer(row, row) for row in x.double()), torch.zeros(x.shape[1], x.shape[1]).double())


def inputs(seed, n, d, decay=1.0):
    """`(n, d)` rows whose energy falls off as `index ** -2 decay` along rotated axes, around a mean that is not 0."""
    generator = torch.Generator().manual_seed(seed)
    axes = torch.linalg.qr(torch.randn(d, d, generator=generator)).Q
    return (torch.randn(n, d, generator=generator) + 0.3) * torch.arange(1, d + 1) ** -decay @ axes


def captured(basis, matrix):
    basis = basis.double()
    return float((basis.T @ matrix.double() @ basis).trace() / matrix.double().trace())


@quick
@given(seeds, widths, st.integers(1, 60))
def test_dense_equals_the_sum_of_outer_products(seed, d, n):
    x = inputs(seed, n, d)
    moment = DenseMoment(d).update(x)
    torch.testing.assert_close(moment.matrix.double(), moment_ref(x), rtol=1e-4, atol=1e-4)
    assert moment.count == n
    assert moment.trace == pytest.approx(float(x.square().sum()), rel=1e-5)


def test_dense_is_right_across_blocks():
    x = inputs(0, 50, 250)
    torch.testing.assert_close(DenseMoment(250).update(x).matrix, x.T @ x, rtol=1e-4, atol=1e-4)


@quick
@given(seeds, st.sampled_from([DenseMoment, SketchedMoment]), st.integers(1, 39))
def test_split_into_batches_does_not_matter(seed, kind, cut):
    x = inputs(seed, 40, 24)
    whole, split = kind(24, **size_of(kind)).update(x), kind(24, **size_of(kind)).update(x[:cut]).update(x[cut:])
    torch.testing.assert_close(whole.eigh()[0], split.eigh()[0], rtol=1e-3, atol=1e-4)
    assert whole.count == split.count


@quick
@given(seeds, widths, st.floats(0.3, 0.999))
def test_basis_is_orthonormal_and_holds_the_energy_asked(seed, d, energy):
    moment = DenseMoment(d).update(inputs(seed, 100, d))
    principal = principal_subspace(moment, energy)
    rank = principal.basis.shape[1]
    torch.testing.assert_close(principal.basis.T @ principal.basis, torch.eye(rank), rtol=0, atol=1e-5)
    assert 0 < rank < d
    assert principal.energy == pytest.approx(captured(principal.basis, moment.matrix), abs=1e-4)
    assert principal.energy >= energy or rank == d - 1
    if rank > 1:
        assert float(principal.spectrum[: rank - 1].double().sum()) < energy + 1e-5


def test_rank_stops_at_the_limit_and_at_what_was_seen():
    moment = DenseMoment(20).update(torch.randn(200, 20))
    assert principal_subspace(moment, 0.99, max_rank=3).basis.shape == (20, 3)
    assert principal_subspace(DenseMoment(20).update(torch.eye(20)[:2]), 0.9999).basis.shape == (20, 2)


@quick
@given(seeds, st.integers(30, 200), st.integers(16, 40), st.floats(0.5, 2))
def test_sketch_keeps_its_bounds(seed, n, size, decay):
    d = 48
    x = inputs(seed, n, d, decay)
    exact = moment_ref(x)
    sketch = SketchedMoment(d, size, dtype=torch.float64).update(x)
    values, vectors = sketch.eigh()
    gaps = torch.linalg.eigvalsh(exact - vectors * values @ vectors.T)
    slack = 1e-6 * float(exact.trace())
    assert float(gaps.min()) >= -slack  # The sketch never shows more than there is.
    assert float(gaps.clamp(min=0).sum()) <= sketch.error_bound + slack
    # The bound beforehand is one of expectation: three times it holds for every draw here.
    tail = torch.linalg.eigvalsh(exact).flip(0)
    assert (
        sketch.error_bound
        <= 3 * min((1 + k / (size - k - 1)) * float(tail[k:].sum()) for k in range(size - 1)) + slack
    )


@quick
@given(seeds, st.floats(0.8, 0.99))
def test_sketch_keeps_nearly_what_the_dense_moment_keeps(seed, energy):
    x = inputs(seed, 400, 64, decay=1.5)
    dense, sketch = DenseMoment(64).update(x), SketchedMoment(64, 32).update(x)
    exact, sketched = principal_subspace(dense, energy), principal_subspace(sketch, energy)
    rank = sketched.basis.shape[1]
    assert rank <= exact.basis.shape[1] + 2
    assert captured(sketched.basis, dense.matrix) >= energy - 1e-5
    assert captured(sketched.basis, dense.matrix) >= float(exact.spectrum[:rank].sum()) - 0.005


def test_sketch_is_deterministic_and_small():
    x = torch.randn(100, 1000)
    first, second = (SketchedMoment(1000, 16).update(x) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.eigh(), second.eigh(), strict=True))
    assert sum(v.numel() for v in vars(first).values() if isinstance(v, torch.Tensor)) <= 2 * 16 * 1000 + 1


@quick
@given(seeds, st.sampled_from([DenseMoment, SketchedMoment]), st.floats(0, 3), st.floats(0.1, 3))
def test_combination_is_the_weighted_sum(seed, kind, a, b):
    x, y = inputs(seed, 30, 24), inputs(seed + 1, 50, 24)
    one, two = (kind(24, **size_of(kind)).update(rows) for rows in (x, y))
    both = kind(24, **size_of(kind)).update(torch.cat([x * a**0.5, y * b**0.5]))
    combined = kind.combine([one, two], [a, b])
    torch.testing.assert_close(combined.eigh()[0], both.eigh()[0], rtol=1e-3, atol=1e-4)
    assert combined.trace == pytest.approx(both.trace, rel=1e-4)
    assert combined.count == 80


@pytest.mark.parametrize("kind", [DenseMoment, SketchedMoment])
def test_average_lets_no_group_outweigh_another(kind):
    many = torch.eye(24)[:1].repeat(5000, 1) * 30
    few = torch.eye(24)[1:2].repeat(3, 1)
    moments = [kind(24, **size_of(kind)).update(rows) for rows in (many, few, torch.zeros(2, 24))]
    values, _ = average(moments).eigh()
    assert values[:3].tolist() == pytest.approx([0.5, 0.5, 0], abs=1e-4)
    with pytest.raises(ValueError, match="zeros only"):
        average(moments[2:])


def size_of(kind):
    return {"size": 12} if kind is SketchedMoment else {}
