"""Streaming second moments of layer inputs, exact or sketched, and the subspace that holds most of their energy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

import torch
from torch import Tensor, distributed


class DenseMoment:
    """The uncentred second moment `sum x x^T`, held exactly as a `(d, d)` matrix.

    Uncentred, since the mean of the inputs is a direction whose output must be kept like any other.
    """

    method = "dense"

    def __init__(self, d: int, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> None:
        self.count = 0
        # Only blocks on and above the diagonal are kept up to date: the rest is their mirror image.
        self._upper = torch.zeros(d, d, device=device, dtype=dtype)
        self._block = max(96, -(-d // 8))

    def update(self, x: Tensor) -> DenseMoment:
        """Adds the rows of `x`, `(n, d)`."""
        x = x.to(self._upper.dtype)
        for start in range(0, x.shape[1], self._block):
            stop = start + self._block
            self._upper[start:stop, start:].addmm_(x[:, start:stop].T, x[:, start:])
        self.count += len(x)
        return self

    def add_up(self) -> None:
        """Becomes the sum over all processes of `torch.distributed`."""
        self.count = int(_summed(torch.tensor(self.count, device=self._upper.device)))
        _summed(self._upper)

    @property
    def matrix(self) -> Tensor:
        """`sum x x^T`, `(d, d)`, exactly symmetric."""
        upper = self._upper.triu()
        return upper + upper.triu(1).T

    @property
    def trace(self) -> float:
        """`sum ||x||^2`."""
        return float(self._upper.diagonal().sum(dtype=_wide(self._upper)))

    @classmethod
    def combine(cls, moments: Sequence[DenseMoment], weights: Sequence[float]) -> DenseMoment:
        """The exact weighted sum of `moments`, all of one width; `weights` are at least 0."""
        first = moments[0]._upper
        total = cls(len(first), first.device, first.dtype)
        for moment, weight in zip(moments, weights, strict=True):
            total._upper.add_(moment._upper, alpha=weight)
            total.count += moment.count
        return total

    def eigh(self) -> tuple[Tensor, Tensor]:
        """Eigenvalues `(d,)`, largest first, and eigenvectors `(d, d)` in columns; float64 where possible."""
        values, vectors = torch.linalg.eigh(self.matrix.to(_wide(self._upper)))
        return values.flip(0).clamp(min=0), vectors.flip(1)


class SketchedMoment:
    """The same moment `M = sum x x^T` in `O(d * size)` memory, as its Nystrom approximation `S`.

    Only `Y = M T` is accumulated, for a fixed orthonormal test matrix `T` `(d, size)`; `S = Y (T^T Y)^+ Y^T`. Then

        `0 <= S <= M`,  so that  `||M - S|| <= error_bound = trace(M) - trace(S)`  in spectral and in nuclear norm

    whatever was seen, up to float32 rounding: the energy that `S` shows in a direction is a lower bound of the true
    one. Beforehand, `error_bound` is expected to be at most `(1 + k / (size - k - 1))` times the energy outside the
    best `k` directions, for every `k < size - 1`. Updates are plain matrix products, sums of sketches are exact, and
    nothing depends on how the rows are split into updates. `T` comes from a fixed seed. See Tropp, Yurtsever, Udell
    and Cevher, "Fixed-Rank Approximation of a Positive-Semidefinite Matrix from Streaming Data", algorithm 3 and
    theorem 4.1, https://arxiv.org/abs/1706.05736.
    """

    method = "sketch"

    def __init__(
        self, d: int, size: int = 512, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> None:
        self.size = min(size, d)
        self.count = 0
        self._test = _test_matrix(d, self.size, torch.device(device), dtype)
        self._image = torch.zeros_like(self._test)
        self._trace = torch.zeros((), device=device, dtype=_wide(self._image))

    def update(self, x: Tensor) -> SketchedMoment:
        """Adds the rows of `x`, `(n, d)`."""
        x = x.to(self._image.dtype)
        self._image.addmm_(x.T, x @ self._test)
        self._trace += torch.dot(x.flatten(), x.flatten())
        self.count += len(x)
        return self

    def add_up(self) -> None:
        """Becomes the sum over all processes of `torch.distributed`."""
        self.count = int(_summed(torch.tensor(self.count, device=self._image.device)))
        _summed(self._image)
        _summed(self._trace)

    @property
    def trace(self) -> float:
        """`sum ||x||^2`."""
        return float(self._trace)

    @property
    def error_bound(self) -> float:
        """What the sketch misses of `M`, at most, in any direction."""
        return max(self.trace - float(self.eigh()[0].sum()), 0.0)

    @classmethod
    def combine(cls, moments: Sequence[SketchedMoment], weights: Sequence[float]) -> SketchedMoment:
        """The exact weighted sum of `moments`, all of one width and size; `weights` are at least 0."""
        first = moments[0]
        total = cls(len(first._image), first.size, first._image.device, first._image.dtype)
        for moment, weight in zip(moments, weights, strict=True):
            total._image.add_(moment._image, alpha=weight)
            total._trace.add_(moment._trace, alpha=weight)
            total.count += moment.count
        return total

    def eigh(self) -> tuple[Tensor, Tensor]:
        """Eigenvalues `(size,)` of the sketch, largest first, and eigenvectors `(d, size)` in columns."""
        image, test = self._image.to(_wide(self._image)), self._test.to(_wide(self._image))
        # Rounding makes the core indefinite; a shift as large as the rounding, taken off again below, mends it.
        shift = torch.finfo(self._image.dtype).eps * torch.linalg.norm(image)
        image = image + shift * test
        core = test.T @ image
        scales, rotation = torch.linalg.eigh((core + core.T) / 2)
        root = rotation * scales.clamp(min=shift.clamp(min=torch.finfo(scales.dtype).tiny)).rsqrt()
        vectors, singular, _ = torch.linalg.svd(image @ root, full_matrices=False)
        return (singular.square() - shift).clamp(min=0), vectors


@lru_cache(maxsize=8)
def _test_matrix(d: int, size: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """`(d, size)` orthonormal columns, the same for all sketches of one shape, so that sketches can be added."""
    gaussian = torch.randn(d, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return torch.linalg.qr(gaussian).Q.to(device, dtype)


Moment = DenseMoment | SketchedMoment
MomentT = TypeVar("MomentT", DenseMoment, SketchedMoment)


def average(moments: Sequence[MomentT]) -> MomentT:
    """The mean of `moments`, each scaled to trace 1, so that none outweighs another by count or by size.

    Raises:
        ValueError: all inputs seen were zero.
    """
    seen = [moment for moment in moments if moment.trace > 0]
    if not seen:
        raise ValueError("`moments` must have seen an input that is not zero; got zeros only.")
    return type(seen[0]).combine(seen, [1 / (len(seen) * moment.trace) for moment in seen])


@dataclass(frozen=True)
class PrincipalSubspace:
    """The directions that hold most of a second moment's energy.

    Attributes:
        basis: `(d, k)` float32, orthonormal columns, strongest first.
        energy: share of the trace inside the basis; a lower bound where the moment is a sketch.
        spectrum: `(m,)` float32, each eigenvalue's share of the trace, largest first.
    """

    basis: Tensor
    energy: float
    spectrum: Tensor


def principal_subspace(moment: Moment, energy: float, max_rank: int | None = None) -> PrincipalSubspace:
    """The smallest leading subspace with at least `energy` of the trace, of at most `max_rank` and `d - 1` dimensions.

    The cap of `d - 1` leaves one direction to train. A cap, or a sketch too small for the energy, shows in `.energy`.
    """
    values, vectors = moment.eigh()
    shares = values / moment.trace
    cumulative = shares.cumsum(0)
    rank = int((cumulative < energy).sum()) + 1
    # Beyond the rank of what was seen, eigenvectors are arbitrary.
    rank = min(rank, len(vectors) - 1, int((shares > 1e-14).sum()), max_rank or len(vectors))
    return PrincipalSubspace(
        basis=vectors[:, :rank].float().contiguous(),
        energy=min(float(cumulative[rank - 1]), 1.0),
        spectrum=shares.float(),
    )


def _summed(x: Tensor) -> Tensor:
    distributed.all_reduce(x)
    return x


def _wide(x: Tensor) -> torch.dtype:
    return torch.float32 if x.device.type == "mps" else torch.float64
