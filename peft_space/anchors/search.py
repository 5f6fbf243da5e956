"""Searches an index of features for what is nearest to a concept, holding no more than what is asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ..progress import advance
from .index import FeatureIndex

_SLACK = 64
_BINS = 4096
_AT_ONCE = 16384
"""So many cosines are looked through together: a part's own are too few to be worth it."""


@dataclass(frozen=True)
class Nearest:
    """What a search found.

    Attributes:
        places: of the nearest images, nearest first.
        cosine: of each of them, `(k,)` float32, as `projector_cosine` has it.
        counts: how many images have a cosine in each bin of -1 to 1, `(bins,)` int64.
    """

    places: tuple[int, ...]
    cosine: Tensor
    counts: Tensor


def nearest(index: FeatureIndex, concept: Tensor, k: int) -> Nearest:
    """The `k` images whose centred features have the highest cosine with `concept`, exactly.

    One matrix product over the features as they lie on disk; memory for one part of the index and `O(k)`.

    Args:
        index: what `index_images` returned.
        concept: the concept's direction, `(d,)`.
        k: how many.
    """
    concept = F.normalize(concept, dim=0)
    common = index.mean @ concept
    # (x - mean) @ concept in two terms is off by rounding: some more are taken, and then looked at closely
    best, places = torch.zeros(0), torch.zeros(0, dtype=torch.long)
    counts = torch.zeros(_BINS, dtype=torch.long)
    for start, cosine in _cosines(index, concept, common):
        advance("search", start, len(index))
        counts += tally(cosine)
        top = cosine.topk(min(k + _SLACK, len(cosine)))
        best, places = torch.cat([best, top.values]), torch.cat([places, top.indices + start])
        keep = best.topk(min(k + _SLACK, len(best))).indices
        best, places = best[keep], places[keep]
    return rescored(index, concept, places, k, counts)


def _cosines(index: FeatureIndex, concept: Tensor, common: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Cosines of some thousands of images that follow each other, and the place of the first."""
    dots, distances, first, end = [], [], 0, 0
    for start, features, away in index.chunks():
        dots.append(features @ concept)
        distances.append(away)
        end = start + len(away)
        if end - first >= _AT_ONCE:
            yield first, (torch.cat(dots) - common) / torch.cat(distances).clamp(min=1e-12)
            dots, distances, first = [], [], end
    if dots:
        yield first, (torch.cat(dots) - common) / torch.cat(distances).clamp(min=1e-12)


def tally(cosine: Tensor) -> Tensor:
    """How many are in each bin of -1 to 1, `(bins,)` int64."""
    return torch.histc(cosine, _BINS, min=-1, max=1).long()


def rescored(index: FeatureIndex, concept: Tensor, places: Tensor, k: int, counts: Tensor) -> Nearest:
    """The nearest `k` of the images at `places`, by their cosines without shortcuts."""
    ascending = places.sort().values
    cosine = cosines(index, ascending.tolist(), concept)
    order = cosine.argsort(descending=True, stable=True)[:k]
    return Nearest(tuple(ascending[order].tolist()), cosine[order], counts)


def cosines(index: FeatureIndex, places: Sequence[int], concept: Tensor) -> Tensor:
    """`projector_cosine` of the images at `places`, in ascending order, within the whole index."""
    return F.normalize(index.rows(places) - index.mean, dim=1) @ F.normalize(concept, dim=0)
