"""What is left of the concept in pictures: of itself, or of what the model takes for it."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from PIL import Image
from torch import Tensor

from ..concepts import Concept
from ..vlm import Prompt
from .metrics import is_gibberish, says, says_nearly
from .pair import Pair
from .report import Ledger

DESCRIPTIONS = ("Describe this image in one sentence.",)
UNSEEN_QUESTIONS = (
    "If you had to give what this image shows a name, what would it be?",
    "Complete the sentence with a name: This is",
    "Tell me whom or what I am looking at, by name.",
)
"""Phrasings that no built-in question of `Concept` or `Retain` uses."""


def measure_pictures(
    pair: Pair,
    ledger: Ledger,
    concept: Concept,
    images: Sequence[Image.Image],
    *,
    whose: str,
    prefix: str,
    data: str,
    unseen: Sequence[str] = (),
    descriptions: Sequence[str] = (),
    others: Sequence[str] = (),
) -> None:
    """Asks both models for the name beside each picture, and adds to `ledger` what they say and would say.

    Args:
        whose: what the pictures are, for a reader: "pictures of the concept".
        prefix: of the figures' keys.
        data: one of `report.DATA`.
        unseen: phrasings that the erasure did not use.
        descriptions: questions that do not ask for the name.
        others: other concepts' names, for the name's rank and for misidentification.
    """
    groups = {"": concept.questions, "_unseen": tuple(unseen), "_description": tuple(descriptions)}
    prompts = {group: [Prompt(text, image) for image in images for text in texts] for group, texts in groups.items()}
    told = {group: pair.answers(some) for group, some in prompts.items() if some}
    wording = {"": "by its name", "_unseen": "by its name, unseen phrasings", "_description": "so in descriptions"}
    for group, answers in told.items():
        units = [id(prompt.image) for prompt in prompts[group]]
        for judge, suffix, manner in ((says, "", ""), (says_nearly, "_fuzzy", ", fuzzy match")):
            base, erased = ([float(judge(concept.names, text)) for text in some] for some in answers)
            label = f"{whose} called {wording[group]}{manner}"
            ledger.add(f"{prefix}forget_accuracy{group}{suffix}", label, base, erased, units, data=data)
    for group in ("", "_unseen"):
        if group in told:
            manner = ", unseen phrasings" if group else ""
            key = f"{prefix}name_probability{group}"
            _likelihood(pair, ledger, concept, prompts[group], f"{whose}{manner}", key, data)
    asked = [group for group in ("", "_unseen") if group in told]
    texts = [[text for group in asked for text in told[group][side]] for side in (0, 1)]
    units = [id(prompt.image) for group in asked for prompt in prompts[group]]
    if others:
        _rank(pair, ledger, concept, images, others, whose, prefix, data)
        base, erased = ([float(says(others, text)) for text in some] for some in texts)
        label = f"{whose} called by another concept's name"
        ledger.add(f"{prefix}misidentified", label, base, erased, units, data=data)
    base, erased = ([float(is_gibberish(text)) for text in some] for some in texts)
    ledger.add(f"{prefix}gibberish", f"{whose}: answers that are gibberish", base, erased, units, data=data)
    fluency(pair, ledger, prompts[""], told[""], whose=whose, key=f"{prefix}fluency", data=data)


def fluency(
    pair: Pair,
    ledger: Ledger,
    prompts: Sequence[Prompt],
    told: tuple[Sequence[str], Sequence[str]],
    *,
    whose: str,
    key: str,
    data: str,
) -> None:
    """How natural the base model finds both models' answers: their log-likelihood in it, nats per token."""
    kept = [place for place in range(len(prompts)) if told[0][place] and told[1][place]]
    asked = [prompts[place] for place in kept]
    with pair.before() as base:
        both = [pair.score(base, asked, [some[place] for place in kept]).tolist() for some in told]
    label = f"{whose}: log-likelihood of the answers in the base"
    units = [unit_of(prompt) for prompt in asked]
    ledger.add(key, label, both[0], both[1], units, data=data, unit="nats")


def _likelihood(
    pair: Pair, ledger: Ledger, concept: Concept, prompts: Sequence[Prompt], whose: str, key: str, data: str
) -> None:
    """P(name)^(1/tokens), "probability" as TOFU and OpenUnlearning have it; of several names the likeliest."""
    per_name = [pair.likelihood(prompts, [name] * len(prompts)) for name in concept.names]
    base, erased = (torch.stack(levels).amax(0).exp().tolist() for levels in zip(*per_name, strict=True))
    units = [unit_of(prompt) for prompt in prompts]
    label = f"{whose}: probability of the name, per token"
    ledger.add(key, label, base, erased, units, data=data, unit="probability")


def _rank(
    pair: Pair,
    ledger: Ledger,
    concept: Concept,
    images: Sequence[Image.Image],
    others: Sequence[str],
    whose: str,
    prefix: str,
    data: str,
) -> None:
    """Where the name stands among other names by the likelihood of whole names, asked with the first question."""
    prompts = [Prompt(concept.questions[0], image) for image in images]
    own = len(concept.names)

    def ranks(levels: Tensor) -> list[float]:
        best = levels[:, :own].amax(1, keepdim=True)
        return (1 + (levels[:, own:] > best).sum(1)).tolist()

    base, erased = map(ranks, pair.likelihoods(prompts, [(*concept.names, *others)] * len(prompts)))
    units = [id(image) for image in images]
    label = f"{whose}: rank of the name among {len(others) + 1} names"
    ledger.add(f"{prefix}name_rank", label, base, erased, units, data=data, unit="rank")
    first, last = ([float(rank == 1) for rank in some] for some in (base, erased))
    label = f"{whose}: the name is the likeliest of {len(others) + 1}"
    ledger.add(f"{prefix}forget_accuracy_likelihood", label, first, last, units, data=data)


def unit_of(prompt: Prompt) -> Hashable:
    """What answers depend on together: the picture, or the text."""
    return prompt.question if prompt.image is None else id(prompt.image)
