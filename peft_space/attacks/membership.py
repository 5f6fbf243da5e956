"""Attack by membership inference: whether the name is likelier than names that were never taught."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..evaluation.intervals import Estimate, auc_estimate
from ..vlm import Prompt, append, encode, evaluating, prompt_batches, speaker, to_device, told_tokens
from .aims import Aims

LOWEST = 0.2
"""Share of an answer's tokens that Min-K%++ looks at: those that fare worst; one at least."""
N_DECOYS = 6
MEASURES = {"loss": "loss of the name", "min_k": "Min-K%++ of the name"}


def decoys(concept_names: Sequence[str], others: Sequence[str], seed: int = 0, n: int = N_DECOYS) -> tuple[str, ...]:
    """Made-up names: the first half of one known name and the second half of another.

    They are made of what real names are made of, so that the spelling tells nothing; none is a known name.

    Args:
        concept_names: the concept's own.
        others: other concepts' names.
        n: at most so many; where there are fewer than three names to cut up, there are few.
    """
    known = {name.casefold() for name in (*concept_names, *others)}
    parts = [_halves(name) for name in dict.fromkeys((concept_names[0], *others))]
    made = [first + second for a, (first, _) in enumerate(parts) for b, (_, second) in enumerate(parts) if a != b]
    made = [name for name in dict.fromkeys(made) if name.casefold() not in known]
    order = np.random.default_rng([seed, 18]).permutation(len(made))[:n]
    return tuple(made[place] for place in order)


def _halves(name: str) -> tuple[str, str]:
    """Cut between words, if there are several, else in the middle."""
    words = name.split(" ")
    middle = len(words) // 2
    if middle:
        return " ".join(words[:middle]) + " ", " ".join(words[middle:])
    return name[: (len(name) + 1) // 2], name[(len(name) + 1) // 2 :]


def membership(
    model: nn.Module,
    processor: Any,
    aims: Aims,
    made_up: Sequence[str],
    *,
    batch_size: int = 64,
    n_bootstrap: int = 2000,
    seed: int = 0,
) -> dict[str, tuple[Estimate, Estimate | None]]:
    """AUC of the name against made-up names about the same pictures, and the same of other concepts' names.

    Members are the pictures of the concept with its name, which the base was taught; nobody taught the others. At 0.5
    nobody can tell from the model which of the names was ever in its training.

    Returns:
        For each of `MEASURES` the AUC of the concept, and that of the control; `None` where there are no others.
    """
    question = aims.concept.questions[0]
    found: dict[str, list[Estimate | None]] = {key: [] for key in MEASURES}
    for pictures in (aims.target, aims.control):
        if not pictures:
            for areas in found.values():
                areas.append(None)
            continue
        prompts = [Prompt(question, shown.image) for shown in pictures for _ in (None, *made_up)]
        answers = [name for shown in pictures for name in (shown.name, *made_up)]
        for key, levels in zip(MEASURES, levels_of(model, processor, prompts, answers, batch_size), strict=True):
            members: dict[Hashable, list[float]] = {}
            rest: dict[Hashable, list[float]] = {}
            for shown, (own, *others) in zip(pictures, levels.view(len(pictures), -1).tolist(), strict=True):
                members[shown.unit], rest[shown.unit] = [own], others
            found[key].append(auc_estimate(members, rest, n_bootstrap=n_bootstrap, seed=seed))
    return {key: (target, control) for key, (target, control) in found.items() if target is not None}


def levels_of(
    model: nn.Module, processor: Any, prompts: Sequence[Prompt], answers: Sequence[str], batch_size: int
) -> tuple[Tensor, Tensor]:
    """The log-likelihood of each answer and its Min-K%++, each `(len(prompts),)` float32, higher for members.

    Min-K%++ (Zhang et al. 2024): of each token (log p - mean) / deviation of log p over the vocabulary under p itself,
    averaged over the `LOWEST` share of tokens.
    """
    loss, lowest = torch.zeros(len(prompts)), torch.zeros(len(prompts))
    with evaluating(model):
        for indices in prompt_batches(model, processor, prompts, batch_size, "likelihood"):
            some = [prompts[i] for i in indices]
            told = told_tokens(processor, some, [answers[i] for i in indices], end=False)
            batch = to_device(model, append(encode(processor, some), told, processor))
            labels = batch.pop("labels")
            longest = int((labels >= 0).sum(1).max())
            logits = speaker(model, batch)(**batch, use_cache=False, logits_to_keep=longest + 1).logits[:, :-1]
            spread = F.log_softmax(logits.float(), dim=-1)
            for row, index in enumerate(indices):
                tokens = labels[row, -longest:]
                kept = tokens >= 0
                level, normal = _token_levels(spread[row][kept], tokens[kept])
                loss[index] = level.mean()
                lowest[index] = normal.topk(max(1, round(LOWEST * len(normal))), largest=False).values.mean()
    return loss, lowest


def _token_levels(spread: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Log p of each token, plain and in standard deviations of log p under p; `spread` is `(tokens, vocabulary)`."""
    level = spread.gather(1, tokens[:, None])[:, 0]
    p = spread.exp()
    # a token of probability 0 adds nothing: 0 * log 0
    mean = (p * spread.clamp(min=-1e4)).sum(1)
    variance = (p * spread.clamp(min=-1e4).square()).sum(1) - mean.square()
    return level.cpu(), ((level - mean) / variance.clamp(min=1e-12).sqrt()).cpu()
