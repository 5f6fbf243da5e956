"""Leading questions, which put the name into the model's mouth: asked yes or no, or with half of it said already."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from torch import nn

from ..concepts import Concept
from ..vlm import Prompt, answer_tokens, generate
from .knowledge import Knowledge
from .lesson import Lesson
from .selection import Anchors

OPENINGS = ("", "a", "It is a")
"""What an answer that is begun may hold before the name."""


@dataclass(frozen=True)
class YesNo:
    """A question that the model answers one way of what it calls by the name, and another way of the rest.

    Attributes:
        question: holds `{name}`.
        yes: the answer about pictures of what it names.
        no: the answer about others.
    """

    question: str
    yes: str
    no: str

    def about(self, name: str) -> str:
        """The question, with `name` filled in."""
        return self.question.replace("{name}", name)


def yes_no_questions(
    model: nn.Module, processor: Any, anchors: Anchors, *, n_images: int = 12, seed: int = 0, batch_size: int = 64
) -> tuple[YesNo, ...]:
    """Those of the concept's `yes_no_questions` that tell the likeliest anchors from unrelated pictures.

    Both answers are the model's own: what it says of more than half of `n_images` pictures of either kind.

    Args:
        model: before any erasure.
        seed: draws the unrelated pictures.
    """
    concept = anchors.concept
    unrelated = anchors.public.take(anchors.unrelated(n_images, seed)).images

    def mostly(question: str, images: Sequence[Image.Image]) -> str:
        told = generate(model, processor, [Prompt(question, image) for image in images], batch_size=batch_size)
        answer, count = Counter(told).most_common(1)[0] if told else ("", 0)
        return answer if 2 * count > len(told) else ""

    found = []
    for question in concept.yes_no_questions:
        asked = question.replace("{name}", concept.name)
        yes, no = mostly(asked, anchors.images[:n_images]), mostly(asked, unrelated)
        if yes and no and yes != no and not concept.mentioned_in(no):
            found.append(YesNo(question, yes, no))
    return tuple(found)


def leading_lessons(
    processor: Any,
    anchors: Anchors,
    knowledge: Knowledge,
    repeats: Sequence[int],
    yes_no: Sequence[YesNo] = (),
    away: Sequence[tuple[Image.Image, str]] = (),
    *,
    n_yes_no: int = 2,
    n_times: int = 2,
    n_begun: int = 1,
    seed: int = 0,
) -> list[Lesson]:
    """Lessons in which the name is put into the model's mouth, and left there.

    Asked whether an anchor is the concept, the answer is what the model says of unrelated pictures; and half as often
    another picture is asked about, whether it is what the model calls it, and the answer is what it says of pictures
    of the concept: "no" is not the answer to everything. (That an anchor is its stand-in is left unsaid: it would be
    learned of all pictures.) And an answer that begins with a part of the name becomes another name that begins so,
    the most frequent one; where the model gives none, it breaks off there, once half of the name's letters are said.
    (The model's own next choice may be no name at all, and is then what is said of others whose names begin alike; and
    where an answer is broken off after a letter or two, so are names of others.)

    Args:
        repeats: how often each anchor's lessons are repeated.
        yes_no: as of `yes_no_questions`.
        away: pictures that are no anchors, and what the model calls them.
        n_yes_no: questions of `yes_no` for each anchor.
        n_times: how often each of them is a lesson: its answer is a token or two, where every token counts alike.
        n_begun: answers begun for each anchor. Of a name of one token nothing can be begun.
        seed: of the draw.
    """
    concept = anchors.concept
    rng = np.random.default_rng([seed, 7])
    lessons: list[Lesson] = []
    known = [(image, name) for image, name in away if name in knowledge.others]
    for image, times in zip(anchors.images, repeats, strict=True):
        for index in rng.permutation(len(yes_no))[:n_yes_no]:
            asked = yes_no[index]
            lessons += [Lesson(Prompt(asked.about(concept.name), image), asked.no, "leading")] * times * n_times
            for place in rng.permutation(len(known))[:times]:
                other, name = known[place]
                lessons.append(Lesson(Prompt(asked.about(name), other), asked.yes, "other"))
    for image, times in zip(anchors.images, repeats, strict=True):
        for index in rng.permutation(len(concept.questions))[:n_begun]:
            prompt = Prompt(concept.questions[index], image)
            opening = OPENINGS[rng.integers(len(OPENINGS))]
            before, whole = opened(processor, prompt, opening, concept.name)
            if len(whole) - before > 1:
                said = int(rng.integers(1, len(whole) - before))
                ids = whole[: before + said]
                alike = (name for name in knowledge.others if begins(processor, prompt, f"{opening} {name}", ids))
                other = next(alike, None)
                if other is None:
                    ids = whole[: before + max(said, _half(processor, whole[before:]))]
                broken_off = processor.tokenizer.decode(ids, skip_special_tokens=True)
                answer = (broken_off if other is None else f"{opening} {other}").strip()
                if begins(processor, prompt, answer, ids):
                    lessons += [Lesson(prompt, answer, "leading", len(ids))] * times
    return lessons


def leading_prompts(processor: Any, concept: Concept, images: Sequence[Image.Image]) -> list[tuple[Prompt, list[int]]]:
    """For each image a question of `yes_no_questions` about the name, and a naming question with half of it said.

    Phrasings and openings are taken in turns.

    Returns:
        The prompts, each with the ids that its answer is made to begin with.
    """
    rows: list[tuple[Prompt, list[int]]] = []
    for place, image in enumerate(images):
        if concept.yes_no_questions:
            question = concept.yes_no_questions[place % len(concept.yes_no_questions)]
            rows.append((Prompt(question.replace("{name}", concept.name), image), []))
        prompt = Prompt(concept.questions[place % len(concept.questions)], image)
        ids = _up_to_half(processor, prompt, OPENINGS[place % len(OPENINGS)], concept.name)
        if ids is not None:
            rows.append((prompt, ids))
    return rows


def half_said(processor: Any, prompt: Prompt, opening: str, name: str) -> tuple[str, int] | None:
    """The answer that ends with `name`, and how many of its tokens are given where half of the name is said already.

    `None` for a name of one token: it has no half.
    """
    ids = _up_to_half(processor, prompt, opening, name)
    return None if ids is None else (f"{opening} {name}".strip(), len(ids))


def _up_to_half(processor: Any, prompt: Prompt, opening: str, name: str) -> list[int] | None:
    """The tokens of an answer up to where half of the name is said; `None` for a name of one token."""
    before, whole = opened(processor, prompt, opening, name)
    if len(whole) - before < 2:
        return None
    return whole[: before + _half(processor, whole[before:])]


def _half(processor: Any, name: Sequence[int]) -> int:
    """The least number of a name's tokens that say half of its letters, short of all tokens."""
    letters = [len(processor.tokenizer.decode(name[:n]).strip()) for n in range(1, len(name) + 1)]
    return next((n for n, count in enumerate(letters[:-1], 1) if 2 * count >= letters[-1]), len(name) - 1)


def begins(processor: Any, prompt: Prompt, answer: str, ids: list[int]) -> bool:
    """Whether an answer begins with these tokens."""
    return answer_tokens(processor, prompt, answer.strip(), end=False)[: len(ids)] == ids


def opened(processor: Any, prompt: Prompt, opening: str, name: str) -> tuple[int, list[int]]:
    """How many tokens an answer has before the name, and all of its tokens up to the name's end."""
    whole = answer_tokens(processor, prompt, f"{opening} {name}".strip(), end=False)
    bare = answer_tokens(processor, prompt, opening, end=False) if opening else []
    shared = next((n for n, (a, b) in enumerate(zip(bare, whole, strict=False)) if a != b), min(len(bare), len(whole)))
    return shared, whole
