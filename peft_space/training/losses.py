"""The two constraints of DCSI on the anchors' features (SPACE, arXiv 2606.09868)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def repulsion(features: Tensor, directions: Tensor) -> Tensor:
    """L_orth: how far features point towards the concept's text.

    Args:
        features: hidden states that predict an answer's tokens, `(n, d)`.
        directions: the concept's directions, `(m, d)`.

    Returns:
        Mean cosine over features and directions, each clamped at 0 from below: a feature that is orthogonal to the
        concept, or turned away from it, is left alone.
    """
    cosine = F.normalize(features.float(), dim=-1) @ F.normalize(directions.float(), dim=-1).T
    return cosine.clamp(min=0).mean()


def spectral_entropy(features: Tensor) -> Tensor:
    """How evenly a set of features spreads over directions.

    Args:
        features: `(n, d)`, n at least 2.

    Returns:
        Entropy of the centred Gram matrix's normalised eigenvalues over its maximum log(n - 1): 1 for features that
        spread alike in all directions, 0 where all lie on one line.
    """
    centred = features.float() - features.float().mean(0)
    gram = centred @ centred.T
    share = torch.linalg.eigvalsh(gram / gram.trace().clamp(min=1e-12)).clamp(min=1e-12)
    return -(share * share.log()).sum() / torch.log(torch.tensor(max(2.0, len(features) - 1.0)))
