"""Attack by probing: whether a linear classifier still finds the concept in the hidden states, layer by layer."""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..evaluation.intervals import Estimate, auc_estimate
from ..progress import advance
from ..vlm import Prompt, hidden_states
from .aims import Aims, Shown

FOLDS, RIDGE = 5, 1.0
LEAST = 6
"""Fewest pictures of one concept that a probe can be fitted and tested on."""
_MOST_CONTROLS = 3
WHERE = ("answer", "image")
"""Where the states are read: at the prompt's last token, and as the mean over the picture's tokens."""


@dataclass(frozen=True)
class Probed:
    """What probes find in one model.

    Attributes:
        target: AUC of the probe for the concept, `WHERE` by layer, the embeddings first.
        control: the mean AUC of the probes for other concepts, the same.
    """

    target: dict[str, list[Estimate]]
    control: dict[str, list[Estimate]]


def probe(
    model: nn.Module, processor: Any, aims: Aims, *, batch_size: int = 64, n_bootstrap: int = 2000, seed: int = 0
) -> Probed:
    """Fits a probe for the concept, and one for each of a few others, in every layer.

    A probe is asked to tell pictures of one concept from those of all others, by the states of the prompt that asks
    for its name. What is in them may be what anybody sees in the picture: it says that the concept was kept only where
    it is more than in a model that never knew it.
    """
    own = [*aims.target, *aims.target_train]
    others = [*aims.control, *aims.control_train]
    prompts = [Prompt(aims.concept.questions[0], shown.image) for shown in (*own, *others)]
    states = dict(zip(WHERE, hidden_states(model, processor, prompts, batch_size=batch_size), strict=True))
    away = list(range(len(own), len(prompts)))
    controls = [
        ([place + len(own) for place in some], [n for n in away if n - len(own) not in some])
        for some in probed_controls(others)
    ]
    units = [shown.unit for shown in (*own, *others)]

    n_probes, fitted = sum(map(len, states.values())) * (1 + len(controls)), itertools.count()

    def auc(layer: Tensor, yes: Sequence[int], no: Sequence[int]) -> Estimate:
        advance("probes", next(fitted), n_probes)
        places = [*yes, *no]
        labels = torch.tensor([True] * len(yes) + [False] * len(no))
        found = out_of_fold(layer[places], labels, seed=seed).tolist()
        sides: tuple[dict[Hashable, list[float]], dict[Hashable, list[float]]] = ({}, {})
        for place, score in zip(places, found, strict=True):
            sides[place in no].setdefault(units[place], []).append(score)
        return auc_estimate(*sides, n_bootstrap=n_bootstrap, seed=seed)

    target = {where: [auc(layer, range(len(own)), away) for layer in some] for where, some in states.items()}
    control = {
        where: [_mean([auc(layer, yes, no) for yes, no in controls]) for layer in some] if controls else []
        for where, some in states.items()
    }
    return Probed(target, control)


def probed_controls(others: Sequence[Shown]) -> list[list[int]]:
    """The places of the pictures of each concept that has enough of them, at most `_MOST_CONTROLS` concepts."""
    places: dict[str, list[int]] = {}
    for place, shown in enumerate(others):
        places.setdefault(shown.name, []).append(place)
    most = sorted(places.values(), key=len, reverse=True)[:_MOST_CONTROLS]
    return [some for some in most if LEAST <= len(some) < len(others)]


def out_of_fold(
    features: Tensor, labels: Tensor, *, folds: int = FOLDS, ridge: float = RIDGE, seed: int = 0
) -> Tensor:
    """What a linear probe says of each row when it was fitted on the rest.

    Least squares on targets that balance the classes, which is Fisher's discriminant (Bishop 2006, 4.1.5), with a
    ridge relative to the mean of the Gram matrix's diagonal; in its dual form, as there are fewer pictures than
    dimensions. Features are centred and scaled on the folds that it is fitted on.

    Args:
        features: `(n, d)` float32.
        labels: `(n,)` bool.
        folds: at most as many as the smaller class has rows.

    Returns:
        `(n,)` float32, higher for the concept.
    """
    rng = np.random.default_rng([seed, 17])
    fold = torch.zeros(len(labels), dtype=torch.long)
    n_folds = min(folds, int(labels.sum()), int((~labels).sum()))
    for label in (True, False):
        places = torch.nonzero(labels == label)[:, 0]
        fold[places[torch.from_numpy(rng.permutation(len(places)))]] = torch.arange(len(places)) % n_folds
    scores = torch.zeros(len(labels))
    for held in range(n_folds):
        kept = fold != held
        fitted, asked = features[kept], features[~kept]
        mean, scale = fitted.mean(0), fitted.std(0).clamp(min=1e-6)
        fitted, asked = (fitted - mean) / scale, (asked - mean) / scale
        yes = labels[kept]
        target = torch.where(yes, len(yes) / yes.sum(), -len(yes) / (~yes).sum())
        gram = fitted @ fitted.T
        # where all prompts end alike, the embedding of their last token is the same for all, and tells nothing
        gram.diagonal().add_((ridge * gram.diagonal().mean()).clamp(min=1e-6))
        scores[~kept] = asked @ (fitted.T @ torch.linalg.solve(gram, target.to(fitted)))
    return scores


def best_layer(base: Probed) -> tuple[str, int]:
    """Where the base's probe finds the concept best; the others are then read at the same place."""
    places = [(where, layer) for where, layers in base.target.items() for layer in range(len(layers))]
    return max(places, key=lambda place: base.target[place[0]][place[1]].value)


def _mean(estimates: Sequence[Estimate]) -> Estimate:
    """The mean of independent figures, with an interval as wide as theirs give it."""
    n = len(estimates)
    value = sum(e.value for e in estimates) / n
    down = sum((e.value - e.low) ** 2 for e in estimates) ** 0.5 / n
    up = sum((e.high - e.value) ** 2 for e in estimates) ** 0.5 / n
    return Estimate(value, value - down, value + up)
