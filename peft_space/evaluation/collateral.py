"""The collateral curve: what other concepts lost, against how similar the model finds them to the erased one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

import torch
from PIL import Image
from torch.nn import functional as F

from ..anchors import concept_embedding
from ..concepts import Concept
from ..vlm import image_features
from .intervals import mean_estimate
from .labelled import Named
from .pair import Pair
from .report import Collateral, CollateralPoint, Ledger

NEAR_SHARE = 0.25
WITH_IMAGES = "projector cosine with pictures of the concept"
WITH_NAME = "projector cosine with the concept's name"


def similarities(
    pair: Pair, pictures: Mapping[str, Sequence[Image.Image]], concept: Concept, target: Sequence[Image.Image] = ()
) -> tuple[dict[str, float], str]:
    """How similar the base model finds other concepts to the erased one, in its projector's space.

    A concept is the mean feature of its pictures, less the mean over all of `pictures`' concepts: raw features are
    nearly the same for all. The erased one is that of its own pictures, where there are some, and else the embedding
    of its name (`anchors.concept_embedding`), which is a different and weaker thing.

    Args:
        pictures: of each other concept.
        target: pictures of the erased concept.

    Returns:
        Cosine of each, -1 to 1, and what it is with: `WITH_IMAGES` or `WITH_NAME`.
    """
    with pair.before() as base:
        means = {
            name: image_features(base, pair.processor, list(images), batch_size=pair.batch_size).mean(0)
            for name, images in pictures.items()
        }
        centre = torch.stack(list(means.values())).mean(0)
        if target:
            features = image_features(base, pair.processor, list(target), batch_size=pair.batch_size)
            direction = features.mean(0) - centre
        else:
            direction = concept_embedding(base, pair.processor, concept)
    cosine = {name: float(F.cosine_similarity(mean - centre, direction, dim=0)) for name, mean in means.items()}
    return cosine, WITH_IMAGES if target else WITH_NAME


def nearest(similarity: Mapping[str, float], share: float = NEAR_SHARE) -> frozenset[str]:
    """The share of concepts that are most similar, and at least one."""
    ranked = sorted(similarity, key=lambda name: -similarity[name])
    return frozenset(ranked[: max(1, round(share * len(ranked)))])


def collateral_curve(
    named: Sequence[Named],
    similarity: Mapping[str, float],
    near: frozenset[str],
    ledger: Ledger,
    *,
    measure: str,
    against: str,
    data: str,
) -> Collateral:
    """The curve, from single answers about each concept.

    Args:
        named: answers about pictures.
        similarity: of the concepts to the erased one.
        near: which of them count as near.
        measure: what a drop is a drop of.
        against: what the similarity is with.
    """
    points = []
    for concept in sorted(similarity, key=lambda name: -similarity[name]):
        rows = [row for row in named if row.concept == concept]
        if not rows:
            continue
        units = [row.unit for row in rows]
        drops = [row.base - row.erased for row in rows]
        drop = mean_estimate(drops, units, bounds=(-1, 1), n_bootstrap=ledger.n_bootstrap, seed=ledger.seed)
        base, erased = fmean(row.base for row in rows), fmean(row.erased for row in rows)
        points.append(CollateralPoint(concept, similarity[concept], concept in near, len(rows), base, erased, drop))
    return Collateral(measure, against, data, tuple(points))
