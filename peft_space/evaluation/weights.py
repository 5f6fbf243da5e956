"""What the update changes inside: the leak on retained inputs, layer by layer, and the spread of the states."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..concepts import Concept
from ..subspace import LeakReport, leak, leak_between
from ..training.losses import spectral_entropy
from ..training.retained import Retained
from ..vlm import Prompt
from .intervals import Estimate, halved_estimate, mean_estimate
from .pair import Pair
from .report import Figure, Ledger

LEAST_STATES = 8
"""Fewest pictures whose states' spread means anything."""
_BATCH = 8
_HALVES = 200


def measure_leak(
    pair: Pair, ledger: Ledger, rows: Sequence[tuple[Prompt, str]], data: str, *, most: int = 96
) -> dict[str, Any]:
    """`||dW x|| / ||W x||` on inputs that should keep their outputs, with the base's own answers.

    Its interval is drawn over batches of 8 prompts.

    Args:
        rows: prompts and answers.
        most: how many to use, drawn at random.

    Returns:
        `mean`, `max` and `per_module`; empty where it can't be measured, which is then among what is not known.
    """
    order = np.random.default_rng([ledger.seed, 11]).permutation(len(rows))[:most]
    if not len(order):
        ledger.unknown["leak"] = "there are no retained prompts; pass `retain` or `public_images`"
        return {}
    retained = Retained(*map(tuple, zip(*(rows[place] for place in order), strict=True)))
    batches = list(retained.batches(pair.model, pair.processor, _BATCH))
    try:
        whole = _leak(pair, batches)
    except ValueError as error:
        ledger.unknown["leak"] = str(error)
        return {}
    each = [_leak(pair, [batch]).mean for batch in batches]
    spread = mean_estimate(each, range(len(each)), n_bootstrap=ledger.n_bootstrap, seed=ledger.seed)
    reach = whole.mean - spread.value
    ledger.figures["leak"] = Figure(
        key="leak",
        label="leak on retained inputs, mean over layers",
        unit="ratio",
        data=data,
        n=len(retained),
        units=len(each),
        base=None,
        erased=Estimate(whole.mean, spread.low + reach, spread.high + reach),
        change=None,
        seed=ledger.seed,
    )
    return {"mean": whole.mean, "max": whole.max, "per_module": dict(whole.per_module)}


def _leak(pair: Pair, batches: list[dict[str, Tensor]]) -> LeakReport:
    if pair.base is None:
        return leak(pair.model, batches)
    return leak_between(pair.base, pair.model, batches)


def measure_entropy(
    pair: Pair, ledger: Ledger, concept: Concept, images: Sequence[Image.Image], whose: str, data: str
) -> None:
    """Spectral entropy of the states that begin the answers about these pictures, 0 to 1; see `spectral_entropy`."""
    if len(images) < LEAST_STATES:
        ledger.unknown["spectral_entropy"] = f"it needs at least {LEAST_STATES} pictures of one kind"
        return
    states = pair.first_states([Prompt(concept.questions[0], image) for image in images])
    rng = np.random.default_rng([ledger.seed, 12])
    halves = [rng.permutation(len(images))[: len(images) // 2] for _ in range(_HALVES)]
    whole = [float(spectral_entropy(some)) for some in states]
    parts = np.array([[float(spectral_entropy(some[torch.from_numpy(half)])) for half in halves] for some in states])
    ledger.figures["spectral_entropy"] = Figure(
        key="spectral_entropy",
        label=f"spectral entropy of the states that begin answers about {whose}",
        unit="ratio",
        data=data,
        n=len(images),
        units=len(images),
        base=halved_estimate(whole[0], parts[0]),
        erased=halved_estimate(whole[1], parts[1]),
        change=halved_estimate(whole[1] - whole[0], parts[1] - parts[0]),
        seed=ledger.seed,
    )
