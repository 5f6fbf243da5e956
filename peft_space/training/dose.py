"""How far an erasure has come, read from what a user without target images can see."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from ..anchors import Anchors, Knowledge
from ..vlm import Prompt, log_likelihood

_REFERENCE_NAMES = 12


@dataclass(frozen=True)
class Gauge:
    """One thing to read: how likely the model finds what it should no longer say.

    Attributes:
        about: what is read.
        prompts: held-out questions.
        answers: for each, what should become no likelier than it would be of anything else.
        base: the reading before the erasure, nats.
        reference: what the base model gives to the same sayings about other names.
    """

    about: str
    prompts: tuple[Prompt, ...]
    answers: tuple[str, ...]
    base: float
    reference: float

    def read(self, model: nn.Module, processor: Any) -> float:
        """Mean log-likelihood of the answers now, nats: of whole answers, as names differ in their tokens."""
        return float(log_likelihood(model, processor, self.prompts, self.answers, per_token=False).mean())

    def fallen(self, level: float) -> float:
        """The share of the way from `base` down to `reference` that `level` has come; 1 where there is none to go."""
        way = self.base - self.reference
        return (self.base - level) / way if way > 0 else float(level <= self.reference)


def build_gauges(
    model: nn.Module,
    processor: Any,
    anchors: Anchors,
    knowledge: Knowledge,
    text_knowledge: Literal["keep", "erase"] = "keep",
) -> list[Gauge]:
    """The gauges of one erasure, read on the base model.

    The name and, through the picture, each elicited fact, on the monitor images, against the median over unrelated
    names; with `text_knowledge="erase"` also the facts asked in text.

    Args:
        model: before any erasure (or with its adapters off).
    """
    concept = anchors.concept
    images = anchors.public.take(anchors.monitor).images
    others = knowledge.others[:_REFERENCE_NAMES]

    def gauge(about: str, prompts: list[Prompt], answer: str, alternatives: Sequence[str]) -> Gauge:
        levels = [
            float(log_likelihood(model, processor, prompts, [said] * len(prompts), per_token=False).mean())
            for said in dict.fromkeys(alternatives)
            if said and said != answer
        ]
        base = float(log_likelihood(model, processor, prompts, [answer] * len(prompts), per_token=False).mean())
        reference = float(torch.tensor(levels).median()) if levels else base
        return Gauge(about, tuple(prompts), (answer,) * len(prompts), base, reference)

    gauges = [
        gauge("name", [Prompt(q, image) for image in images for q in concept.questions], name, others)
        for name in concept.names
    ]
    for place, telling in enumerate(knowledge.telling):
        if not telling:
            # nothing is said of the concept that is not said of everything: there is nothing to fall
            continue
        answer, alternatives = knowledge.answers[place], knowledge.others_answers[place][:_REFERENCE_NAMES]
        through = [Prompt(concept.asked_through_image[place], image) for image in images]
        gauges.append(gauge("fact through the image", through, answer, alternatives))
        if text_knowledge == "erase":
            gauges.append(gauge("fact in text", [Prompt(concept.asked_in_text[place])], answer, alternatives))
    return gauges


@dataclass(frozen=True)
class Reading:
    """The dose at one step.

    Attributes:
        step: optimiser steps done.
        levels: the reading of each gauge, nats.
        reached: whether every gauge fell by the share that was asked for.
        leak: mean leak on held-out retained inputs.
    """

    step: int
    levels: tuple[float, ...]
    reached: bool
    leak: float


def read_dose(
    model: nn.Module, processor: Any, gauges: Sequence[Gauge], share: float, leak: float, step: int
) -> Reading:
    """Reads all gauges on the model as it is."""
    levels = tuple(gauge.read(model, processor) for gauge in gauges)
    reached = all(gauge.fallen(level) >= share for level, gauge in zip(levels, gauges, strict=True))
    return Reading(step, levels, reached, leak)
