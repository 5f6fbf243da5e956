"""How far an erasure has come, read from what a user without target images can see."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from ..anchors import Anchors, Company, Knowledge, in_company
from ..anchors.leading import OPENINGS, YesNo, half_said
from ..anchors.lessons import SLOT, with_slot
from ..vlm import Prompt, generate, log_likelihood, log_likelihoods
from .arguments import SpaceTrainingArguments

_NAMED = ("name", "name, not asked for")
_REFERENCE_NAMES = 8
_KEPT_QUESTIONS = 4
_SURE = math.log(0.9)
# a probability nearer to 1 than this is rounding
_CERTAIN = -1e-6


@dataclass(frozen=True)
class Gauge:
    """One thing to read: how likely the model finds what it should no longer say, or what it should still say.

    Attributes:
        about: what is read.
        prompts: held-out questions.
        answers: for each, what should become no likelier than it would be of anything else; or what should stay.
        base: the reading before the erasure: log-odds in nats; of what should stay, the log-likelihood.
        reference: the log-odds that the base model gives to the same sayings about other names: the median of their
            means. `None` for what should stay.
        sure: the log-odds where the base model is surest.
        begun: how many tokens of each answer are given and not read; none where it is empty.
    """

    about: str
    prompts: tuple[Prompt, ...]
    answers: tuple[str, ...]
    base: float
    reference: float | None
    sure: float = math.nan
    begun: tuple[int, ...] = ()

    def read(self, model: nn.Module, processor: Any, batch_size: int = 64) -> float:
        """The reading now, in nats: of whole answers, as names differ in their tokens.

        Of what should go the log-odds, their mean over the likeliest quarter: what is left of a concept is left in
        the pictures that are most like it. Of what should stay the mean log-likelihood of all.
        """
        levels = log_likelihood(
            model, processor, self.prompts, self.answers, per_token=False, batch_size=batch_size, begun=self.begun
        )
        return float(levels.mean()) if self.reference is None else _likeliest(log_odds(levels))

    def met(self, level: float, args: SpaceTrainingArguments) -> bool:
        """Whether `level` has fallen far enough; of what should stay, by no more than `args.dose_slack` nats.

        Far enough is `dose_share` of the way, and `dose_margin` nats (of the name, `dose_name_margin`) below even odds
        unless other names are likelier than that: where the base model was very sure, part of the way down is still
        likelier than not.
        """
        if self.reference is None:
            return self.base - level <= args.dose_slack
        return self.fallen(level) >= args.dose_share and level <= max(-self._margin(args), self.reference)

    def lost_again(self, before: float, now: float, args: SpaceTrainingArguments) -> bool:
        """Whether it was where it should be `before` and is so no longer, by more than half of its margin or slack.

        What only wavers around its margin is not lost.
        """
        gone = before - now if self.reference is None else now - before
        return self.met(before, args) and not self.met(now, args) and gone > self._margin(args) / 2

    def _margin(self, args: SpaceTrainingArguments) -> float:
        if self.reference is None:
            return args.dose_slack
        return args.dose_name_margin if self.about in _NAMED else args.dose_margin

    def fallen(self, level: float) -> float:
        """How far `level` has come down from `base`: 1 is the way from `sure` to `reference`.

        A picture that the base model only half takes for the concept has a short way to go and says little of one
        that it is sure of. The pictures of the concept are such, and nobody may look at them: so the monitor has to
        fall as far as they would have to. 1 where there is no way to go.
        """
        if self.reference is None:
            raise ValueError(f"`reference` must be known to tell how far {self.about!r} has fallen; it should stay.")
        if self.base <= self.reference:
            return float(level <= self.reference)
        return (self.base - level) / (self.sure - self.reference)


def build_gauges(
    model: nn.Module,
    processor: Any,
    anchors: Anchors,
    knowledge: Knowledge,
    naming: Sequence[str] = (),
    questions: Sequence[str] = (),
    text_knowledge: Literal["keep", "erase"] = "keep",
    *,
    yes_no: Sequence[YesNo] = (),
    company: Company | None = None,
    batch_size: int = 64,
    seed: int = 0,
) -> list[Gauge]:
    """The gauges of one erasure, read on the base model.

    The name and, through the picture, each elicited fact, on the monitor images, against the median over unrelated
    names; with `text_knowledge="erase"` also the facts asked in text; the "yes" to the questions of `yes_no`, against
    the "yes" where they ask about other names; the rest of the name where half of it is given, against the rest of
    other names after theirs. The questions of `naming` are read on the
    model's own answers, the concept's name put in the place of whatever name they hold. One more gauge holds what
    should stay: what the model is sure of among its own answers to a few of `questions` about each of the same images.

    Args:
        model: before any erasure (or with its adapters off).
        naming: questions that make the model say the name though they do not ask for it.
        questions: other questions about a picture.
        yes_no: as of `yes_no_questions`.
        company: as of `find_company`: its questions are asked of monitor images beside others, and what it watches
            is read with them.
        batch_size: prompts at a time.
    """
    concept = anchors.concept
    images = anchors.public.take(anchors.monitor).images
    others = knowledge.others[:_REFERENCE_NAMES]
    asked = [Prompt(question, image) for image in images for question in concept.questions]

    def gauge(about: str, prompts: list[Prompt], frames: Sequence[str], answer: str, rest: Sequence[str]) -> Gauge:
        rest = [said for said in dict.fromkeys(rest) if said and said != answer]
        answers = [[frame.replace(SLOT, said) for said in (answer, *rest)] for frame in frames]
        levels = log_odds(log_likelihoods(model, processor, prompts, answers, batch_size))
        base, sure = _likeliest(levels[:, 0]), float(levels[:, 0].max())
        reference = float(levels[:, 1:].mean(0).median()) if rest else base
        return Gauge(about, tuple(prompts), tuple(said for said, *_ in answers), base, reference, sure)

    def unasked(about: str, prompts: list[Prompt], only_named: bool, also: Sequence[tuple[Prompt, str]] = ()) -> None:
        said = generate(model, processor, prompts, batch_size=batch_size)
        told = [(0, *row) for row in [*zip(prompts, said, strict=True), *also]]
        kept = with_slot(concept, knowledge, [row for row in told if not only_named or concept.mentioned_in(row[2])])
        if kept:
            _, having_one, frames = map(list, zip(*kept, strict=True))
            gauges.append(gauge(about, having_one, frames, concept.name, others))

    gauges = [gauge(_NAMED[0], asked, [SLOT] * len(asked), name, others) for name in concept.names]
    if naming:
        unasked(_NAMED[1], [Prompt(question, image) for image in images for question in naming], False)
    if company is not None and company.questions:
        rng = np.random.default_rng([seed, 12])
        companions = anchors.public.take(anchors.unrelated(len(images), seed)).images
        prompts = [Prompt(q, image) for image in in_company(images, companions, rng) for q in company.questions]
        unasked("name, in company", prompts, True, company.watched)

    def held_against(about: str, rows_about: Callable[[str], list[_Row]], name: str, rest: Sequence[str]) -> None:
        """Reads rows that hold the name against the same ones with other names in its place."""
        rows = rows_about(name)
        if not rows:
            return
        own = _odds_of(model, processor, rows, batch_size)
        of_others = [_odds_of(model, processor, some, batch_size).mean() for some in map(rows_about, rest) if some]
        reference = float(torch.stack(of_others).median()) if of_others else _likeliest(own)
        prompts, answers, begun = zip(*rows, strict=True)
        gauges.append(Gauge(about, prompts, answers, _likeliest(own), reference, float(own.max()), begun))

    def yes_to(name: str) -> list[_Row]:
        return [(Prompt(one.about(name), image), one.yes, 0) for image in images for one in yes_no]

    def rest_of(name: str) -> list[_Row]:
        # of a picture a template sees its place alone
        halves = {
            (question, opening): half_said(processor, Prompt(question, images[0]), opening, name)
            for question in concept.questions
            for opening in OPENINGS
        }
        rows = []
        for place, image in enumerate(images):
            for turn, opening in enumerate(OPENINGS):
                question = concept.questions[(place + turn) % len(concept.questions)]
                half = halves[question, opening]
                rows += [(Prompt(question, image), *half)] if half is not None else []
        return rows

    if others:
        held_against("yes or no", yes_to, concept.name, others)
    for name in concept.names:
        held_against("half of the name given", rest_of, name, others)
    for place, telling in enumerate(knowledge.telling):
        if not telling:
            # nothing is said of the concept that is not said of everything: there is nothing to fall
            continue
        answer, alternatives = knowledge.answers[place], knowledge.others_answers[place][:_REFERENCE_NAMES]
        through = [Prompt(concept.asked_through_image[place], image) for image in images]
        gauges.append(gauge("fact through the image", through, [SLOT] * len(through), answer, alternatives))
        if text_knowledge == "erase":
            gauges.append(gauge("fact in text", [Prompt(concept.asked_in_text[place])], [SLOT], answer, alternatives))
    others_asked = [question for question in questions if question not in naming]
    if others_asked:
        pairs = itertools.product(range(_KEPT_QUESTIONS), enumerate(images))
        # each picture with the next few questions, so that all of them get their turn
        kept_prompts = [
            Prompt(others_asked[(place * _KEPT_QUESTIONS + turn) % len(others_asked)], image)
            for turn, (place, image) in pairs
        ]
        told_of_rest = generate(model, processor, kept_prompts, batch_size=batch_size)
        rest = log_likelihood(model, processor, kept_prompts, told_of_rest, per_token=False, batch_size=batch_size)
        # where the model hesitates any change of it may turn the answer, and never back
        sure = [n for n, level in enumerate(rest.tolist()) if level > _SURE]
        if sure:
            sure_prompts, sure_answers = tuple(kept_prompts[n] for n in sure), tuple(told_of_rest[n] for n in sure)
            gauges.append(Gauge("what should stay", sure_prompts, sure_answers, float(rest[sure].mean()), None))
    return gauges


_Row = tuple[Prompt, str, int]
"""A prompt, an answer to it, and how many of the answer's tokens are given."""


def _odds_of(model: nn.Module, processor: Any, rows: Sequence[_Row], batch_size: int) -> Tensor:
    prompts, answers, begun = zip(*rows, strict=True)
    return log_odds(
        log_likelihood(model, processor, prompts, answers, per_token=False, batch_size=batch_size, begun=begun)
    )


def tied_to_name(gauges: Sequence[Gauge]) -> bool:
    """Whether the base model calls the likeliest monitor images by the name: else no fall could be seen."""
    return any(gauge.about == _NAMED[0] and gauge.base > 0 for gauge in gauges)


def log_odds(levels: Tensor) -> Tensor:
    """Log p / (1 - p) of log p. Unlike it, it tells one certainty from another."""
    levels = levels.clamp(max=_CERTAIN)
    return levels - (-levels.expm1()).log()


def _likeliest(levels: Tensor) -> float:
    return float(levels.topk(-(-len(levels) // 4)).values.mean())


@dataclass(frozen=True)
class Reading:
    """The dose at one step.

    Attributes:
        step: optimiser steps done.
        levels: the reading of each gauge, nats.
        reached: whether every gauge is where it should be.
        leak: mean leak on held-out retained inputs.
    """

    step: int
    levels: tuple[float, ...]
    reached: bool
    leak: float

    @property
    def finite(self) -> bool:
        """Whether all of it could be read."""
        return all(map(math.isfinite, (*self.levels, self.leak)))


def read_dose(
    model: nn.Module,
    processor: Any,
    gauges: Sequence[Gauge],
    args: SpaceTrainingArguments,
    leak: float,
    step: int,
) -> Reading:
    """Reads all gauges on the model as it is."""
    levels = tuple(gauge.read(model, processor, args.per_device_eval_batch_size) for gauge in gauges)
    reached = all(gauge.met(level, args) for level, gauge in zip(levels, gauges, strict=True))
    return Reading(step, levels, reached, leak)


def comes_back(gauges: Sequence[Gauge], readings: Sequence[Reading], args: SpaceTrainingArguments) -> bool:
    """Whether the latest reading finds a gauge lost again, for which the steps should become shorter.

    What follows at once upon another such reading is left to the steps that have become shorter: where a step has gone
    too far, one gauge comes back first and then another.
    """
    back = False
    for before, now in itertools.pairwise(readings):
        levels = zip(gauges, before.levels, now.levels, strict=True)
        back = not back and any(gauge.lost_again(old, new, args) for gauge, old, new in levels)
    return back
