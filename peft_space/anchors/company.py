"""The concept in company: public pictures in which it is named beside others, found there or put together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from torch import nn

from ..vlm import Prompt, generate
from .knowledge import questions_that_name
from .lesson import Lesson, StandIn
from .selection import Anchors

_SHOWN = (0.6, 0.9)
"""The least and the most of a picture's width that is left when it shares a picture with another."""


@dataclass(frozen=True)
class Company:
    """How the model tells the concept's name of pictures that show it beside others; of most models nothing is known.

    Attributes:
        questions: as of `company_questions`.
        taught: public pictures that name it so, as of `named_in_company`: what was asked, and the answer.
        watched: every fourth of those that were found, which is kept out of training as the monitor is.
    """

    questions: tuple[str, ...] = ()
    taught: tuple[tuple[Prompt, str], ...] = ()
    watched: tuple[tuple[Prompt, str], ...] = ()


def find_company(
    model: nn.Module,
    processor: Any,
    anchors: Anchors,
    questions: Sequence[str],
    n_images: int,
    *,
    batch_size: int = 64,
    seed: int = 0,
) -> Company:
    """What `questions` tell of the concept in company; see `company_questions` and `named_in_company`."""
    naming = company_questions(model, processor, anchors, questions, batch_size=batch_size, seed=seed)
    found = named_in_company(model, processor, anchors, naming, n_images, batch_size=batch_size, seed=seed)
    taught = tuple(one for place, one in enumerate(found) if place % 4)
    return Company(tuple(naming), taught, tuple(found[::4]))


def beside(left: Image.Image, right: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Two pictures in one of the first one's size, each in its half.

    A half shows the middle of its picture, 60 % to 90 % of the width, as large as it fits; what is left above and
    below goes on as the picture's edge.
    """
    width, height = left.size
    both = Image.new("RGB", (width, height))
    for place, (image, wide) in enumerate(((left, width // 2), (right, width - width // 2))):
        both.paste(_half(image.convert("RGB"), wide, height, rng), (place * (width // 2), 0))
    return both


def _half(image: Image.Image, width: int, height: int, rng: np.random.Generator) -> Image.Image:
    shown = image.width * rng.uniform(*_SHOWN)
    scale = width / shown
    tall = min(height, max(1, round(image.height * scale)))
    left, top = (image.width - shown) / 2, (image.height - tall / scale) / 2
    box = (left, max(0.0, top), left + shown, min(image.height, top + tall / scale))
    view = np.asarray(image.resize((width, tall), Image.Resampling.BICUBIC, box=box))
    above = int(rng.integers(height - tall + 1))
    return Image.fromarray(np.pad(view, ((above, height - tall - above), (0, 0), (0, 0)), mode="edge"))


def in_company(
    images: Sequence[Image.Image], companions: Sequence[Image.Image], rng: np.random.Generator
) -> list[Image.Image]:
    """Each of `images` beside one of `companions`, drawn at random, to its left or to its right."""
    pairs = []
    for image in images:
        other = companions[int(rng.integers(len(companions)))]
        pairs.append(beside(image, other, rng) if rng.random() < 0.5 else beside(other, image, rng))
    return pairs


def company_questions(
    model: nn.Module,
    processor: Any,
    anchors: Anchors,
    questions: Sequence[str],
    *,
    n_anchors: int = 12,
    batch_size: int = 64,
    seed: int = 0,
) -> list[str]:
    """Those questions to which the model answers with the name where an anchor is beside another picture.

    A single mention is enough. A model that knows nothing in half a picture has none.

    Args:
        model: before any erasure.
        questions: what may be asked.
        n_anchors: the likeliest so many are asked about.
        seed: draws the companions and the sides.
    """
    rng = np.random.default_rng([seed, 10])
    companions = anchors.public.take(anchors.unrelated(n_anchors, seed)).images
    if not companions:
        return []
    images = in_company(anchors.images[:n_anchors], companions, rng)
    return questions_that_name(model, processor, anchors.concept, questions, images, batch_size=batch_size)


def named_in_company(
    model: nn.Module,
    processor: Any,
    anchors: Anchors,
    questions: Sequence[str],
    n_images: int,
    *,
    batch_size: int = 64,
    seed: int = 0,
) -> list[tuple[Prompt, str]]:
    """Public pictures away from the anchors of which the model says the name, asked one of these questions each.

    A picture of two is no anchor, as the model calls neither by name when asked what the picture shows.

    Args:
        model: before any erasure.
        questions: as of `company_questions`; without any nothing is asked.
        n_images: how many are asked about at most.
        seed: draws them.

    Returns:
        What was asked of each, and the answer.
    """
    if not questions:
        return []
    images = anchors.public.take(anchors.unrelated(n_images, seed)).images
    prompts = [Prompt(questions[place % len(questions)], image) for place, image in enumerate(images)]
    told = generate(model, processor, prompts, batch_size=batch_size)
    return [(prompt, text) for prompt, text in zip(prompts, told, strict=True) if anchors.concept.mentioned_in(text)]


def company_lessons(
    model: nn.Module,
    processor: Any,
    anchors: Anchors,
    fitting: Sequence[StandIn],
    questions: Sequence[str],
    found: Sequence[Lesson] = (),
    *,
    n_pictures: int = 6,
    n_questions: int = 3,
    n_lessons: int = 3,
    batch_size: int = 64,
    seed: int = 0,
) -> list[Lesson]:
    """Lessons on anchors in company: who is there is told as before, with the stand-in's name for the concept's.

    Where the answer is about the other one it stays as it is, and is a lesson too, so far as there are as many with
    the name.

    Args:
        fitting: what each anchor is told as.
        questions: as of `company_questions`; without any there is no lesson.
        found: lessons with the name, on pictures that were not put together; they come first.
        n_pictures: pictures in company for each anchor.
        n_questions: questions for each of these.
        n_lessons: most lessons with the name for each anchor, in the mean, those that were `found` among them.
        seed: of the draw.
    """
    if not questions:
        return []
    rng = np.random.default_rng([seed, 11])
    companions = anchors.public.take(anchors.unrelated(4 * len(anchors), seed)).images
    images = anchors.images
    rows = [
        (place, Prompt(questions[index], image))
        for _ in range(n_pictures)
        for place, image in enumerate(in_company(images, companions, rng))
        for index in rng.permutation(len(questions))[:n_questions]
    ]
    told = generate(model, processor, [prompt for _, prompt in rows], batch_size=batch_size)
    named, kept = [], []
    for (place, prompt), text in zip(rows, told, strict=True):
        if anchors.concept.mentioned_in(text):
            named.append(Lesson(prompt, anchors.concept.replaced_in(text, fitting[place].name), "name"))
        else:
            kept.append(Lesson(prompt, text, "other"))
    most = len(anchors) * n_lessons
    named = [*found, *(named[index] for index in rng.permutation(len(named)))][:most]
    return named + kept[: len(named)]
