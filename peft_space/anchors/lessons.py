"""What the anchors teach: questions about them with the model's own answers, the concept left unsaid."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image, ImageEnhance
from torch import nn

from ..concepts import Concept
from ..concepts.concept import find_any
from ..vlm import Prompt, generate, log_likelihoods
from .answers import suppressed_answers
from .company import Company, company_lessons
from .knowledge import Knowledge, questions_that_name
from .leading import YesNo, leading_lessons
from .lesson import About, Lesson, StandIn
from .selection import Anchors

SLOT = "\0"
"""Stands in an answer for the name that is to be put there."""


def anchor_lessons(
    model: nn.Module,
    processor: Any,
    anchors: Anchors,
    knowledge: Knowledge,
    questions: Sequence[str],
    naming: Sequence[str] = (),
    yes_no: Sequence[YesNo] = (),
    company: Company | None = None,
    away: Sequence[tuple[Image.Image, str]] = (),
    *,
    text_knowledge: Literal["keep", "erase"] = "keep",
    n_names: int = 3,
    n_facts: int = 1,
    n_others: int = 6,
    batch_size: int = 64,
    seed: int = 0,
) -> list[Lesson]:
    """The lessons of DCSI: naming questions and every fact on every anchor, and some other questions.

    Each anchor is told as one and the same other thing throughout, its stand-in: asked for the name, the answer is the
    stand-in's name; asked for a fact, what the model says of that name; asked for something whose answer holds the
    concept's name, that answer with the stand-in's. Where the concept asks for general answers, a general word takes
    the place of the stand-in's name. Beside these are the leading questions of `leading_lessons` and the anchors in
    company of `company_lessons`. What no stand-in answers (other questions, facts of what is no name, questions in
    text) is answered by the model's own next choice. Where few anchors are called by the name, the lessons about name
    and facts on these are repeated until they weigh as much as those on all others.

    Args:
        model: before any erasure.
        questions: other questions about a picture; `n_others` of them are drawn for each anchor.
        naming: those that make the model say the name though they do not ask for it, as of `naming_questions`; asked
            of every anchor.
        yes_no: as of `yes_no_questions`.
        company: as of `find_company`.
        away: pictures that are no anchors, and what the model calls them, for questions of `yes_no` about others.
        text_knowledge: "erase" adds the text questions about the name, each a quarter as often as there are anchors.
        n_names: naming questions for each anchor.
        n_facts: how often each fact is a lesson, for each anchor.
        n_others: other questions for each anchor.
        batch_size: prompts at a time.
        seed: of the draw.

    Returns:
        The lessons whose answer could be written without saying what must not be said.
    """
    concept = anchors.concept
    rng = np.random.default_rng(seed)
    questions = [question for question in questions if question not in naming]
    prompts = [Prompt(question, image) for image in anchors.images for question in naming]
    told = generate(model, processor, prompts, batch_size=batch_size)
    unasked = [(n // len(naming), *row) for n, row in enumerate(zip(prompts, told, strict=True))]
    fitting = stand_ins(model, processor, anchors, knowledge, unasked, batch_size=batch_size)
    if concept.generic_question is not None:
        # what is called by another name keeps it: a general word there would take that name from all that bear it
        general = [Prompt(concept.generic_question, image) for image in anchors.images]
        words = generate(model, processor, general, batch_size=batch_size)
        fitting = [
            _general(concept, one, word) if one.renamed else one for one, word in zip(fitting, words, strict=True)
        ]
    lessons: list[Lesson] = []
    # what the model has to answer itself: the prompt, what it may not say, what it is about, how often it is a lesson
    left: list[tuple[Prompt, tuple[str, ...], About, int]] = []
    strong = sum(stand_in.renamed for stand_in in fitting)
    often = max(1, round((len(anchors) - strong) / strong)) if strong else 1
    repeats = [often if stand_in.renamed else 1 for stand_in in fitting]
    for image, stand_in, times in zip(anchors.images, fitting, repeats, strict=True):
        for index in rng.permutation(len(concept.questions))[:n_names]:
            lessons += [Lesson(Prompt(concept.questions[index], image), stand_in.name, "name")] * times
        for number, (question, telling) in enumerate(zip(concept.asked_through_image, knowledge.telling, strict=True)):
            prompt, banned = Prompt(question, image), (*concept.names, *telling)
            if stand_in.facts and find_any(banned, stand_in.facts[number]) is None:
                lessons += [Lesson(prompt, stand_in.facts[number], "fact")] * n_facts * times
            else:
                left.append((prompt, banned, "fact", n_facts * times))
        for index in rng.permutation(len(questions))[:n_others]:
            left.append((Prompt(questions[index], image), concept.names, "other", 1))
    for place, prompt, text in unasked:
        lessons += [Lesson(prompt, concept.replaced_in(text, fitting[place].name), "name")] * repeats[place]
    lessons += leading_lessons(processor, anchors, knowledge, repeats, yes_no, away, seed=seed)
    if company is not None:
        beside = _in_place_of_name(model, processor, anchors, knowledge, fitting, company.taught, batch_size)
        lessons += company_lessons(
            model, processor, anchors, fitting, company.questions, beside, batch_size=batch_size, seed=seed
        )
    if text_knowledge == "erase":
        for question, telling in zip(concept.asked_in_text, knowledge.telling, strict=True):
            left.append((Prompt(question), telling, "fact", max(1, len(anchors) // 4)))
    if left:
        answers = suppressed_answers(
            model, processor, [row[0] for row in left], [row[1] for row in left], batch_size=batch_size
        )
        for (prompt, _, about, often), answer in zip(left, answers, strict=True):
            if answer is not None:
                lessons += [Lesson(prompt, answer, about)] * often
    return lessons


def _general(concept: Concept, stand_in: StandIn, word: str) -> StandIn:
    """The same, told by a general word in the place of its name.

    Its facts stay: they move an anchor away from what is known of the concept, which a general word does not.
    """
    named = concept.called(stand_in.name)
    return StandIn(word, tuple(named.replaced_in(fact, word) for fact in stand_in.facts))


def varied(lessons: Sequence[Lesson], seed: int = 0) -> list[Lesson]:
    """The lessons, those about the name or a fact with a slightly different view of their picture each.

    A strong anchor is rare and bears a dozen lessons: on one and the same view its pixels would be learned by heart.
    """
    rng = np.random.default_rng([seed, 5])
    return [
        replace(lesson, prompt=replace(lesson.prompt, image=_view(lesson.prompt.image, rng)))
        if lesson.prompt.image is not None and lesson.about != "other"
        else lesson
        for lesson in lessons
    ]


def _view(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A crop of at least 85 % of each side, light and contrast changed by at most 15 %: no answer becomes another."""
    share = rng.uniform(0.85, 1.0)
    width, height = image.width * share, image.height * share
    left, top = rng.uniform(0, image.width - width), rng.uniform(0, image.height - height)
    crop = (left, top, left + width, top + height)
    view = image.convert("RGB").resize(image.size, Image.Resampling.BICUBIC, box=crop)
    for change in (ImageEnhance.Brightness, ImageEnhance.Contrast):
        view = change(view).enhance(rng.uniform(0.85, 1.15))
    return view


def stand_ins(
    model: nn.Module,
    processor: Any,
    anchors: Anchors,
    knowledge: Knowledge,
    unasked: Sequence[tuple[int, Prompt, str]] = (),
    *,
    batch_size: int = 64,
) -> list[StandIn]:
    """For each anchor what it is told as: what the model calls it, where that is not the concept, else the next name.

    The next name is the likeliest of `knowledge.others`, in the answer to the question for the name and in those that
    hold one unasked. Whole names are compared: the second choice token by token is often no name at all.

    Args:
        unasked: place of an anchor, a prompt about it, and the model's answer, which may hold a name.
    """
    concept, others = anchors.concept, knowledge.others
    rows = [(place, Prompt(concept.questions[0], image), SLOT) for place, image in enumerate(anchors.images)]
    called = generate(model, processor, [prompt for _, prompt, _ in rows], batch_size=batch_size)
    wanted = [place for place, name in enumerate(called) if not name or concept.mentioned_in(name)]
    rows = [row for row in [*rows, *with_slot(concept, knowledge, unasked)] if row[0] in wanted]
    for place, name in _likeliest(model, processor, rows, others, batch_size).items():
        called[place] = name
    facts = dict(zip(others, zip(*knowledge.others_answers, strict=True), strict=False))
    return [StandIn(name, facts.get(name, ()), place in wanted) for place, name in enumerate(called)]


def _likeliest(
    model: nn.Module, processor: Any, rows: Sequence[tuple[int, Prompt, str]], names: Sequence[str], batch_size: int
) -> dict[int, str]:
    """For each place the likeliest of `names` in the answers about it, with `SLOT` where the name goes."""
    answers = [[frame.replace(SLOT, name) for name in names] for _, _, frame in rows]
    scores = log_likelihoods(model, processor, [prompt for _, prompt, _ in rows], answers, batch_size)
    fits = {place: torch.zeros(len(names)) for place, _, _ in rows}
    for (place, _, _), row in zip(rows, scores, strict=True):
        fits[place] += row
    return {place: names[int(fit.argmax())] for place, fit in fits.items()}


def _in_place_of_name(
    model: nn.Module,
    processor: Any,
    anchors: Anchors,
    knowledge: Knowledge,
    fitting: Sequence[StandIn],
    found: Sequence[tuple[Prompt, str]],
    batch_size: int,
) -> list[Lesson]:
    """Lessons on pictures that name the concept in company: the likeliest other name, or the usual general word."""
    concept = anchors.concept
    rows = [(place, prompt, concept.replaced_in(text, SLOT)) for place, (prompt, text) in enumerate(found)]
    words = Counter(one.name for one in fitting if one.renamed) if concept.generic_question is not None else Counter()
    if words:
        names = dict.fromkeys(range(len(found)), words.most_common(1)[0][0])
    else:
        names = _likeliest(model, processor, rows, knowledge.others, batch_size)
    return [Lesson(prompt, frame.replace(SLOT, names[place]), "name") for place, prompt, frame in rows]


def with_slot(
    concept: Concept, knowledge: Knowledge, told: Sequence[tuple[int, Prompt, str]]
) -> list[tuple[int, Prompt, str]]:
    """Those answers that hold one name, the concept's or another, with `SLOT` in its place."""
    anyone = replace(concept, aliases=(*concept.aliases, *knowledge.others))
    rows = [(place, prompt, anyone.replaced_in(text, SLOT)) for place, prompt, text in told]
    return [row for row in rows if row[2].count(SLOT) == 1]


def naming_questions(
    model: nn.Module,
    processor: Any,
    anchors: Anchors,
    questions: Sequence[str],
    *,
    n_anchors: int = 12,
    batch_size: int = 64,
) -> list[str]:
    """Those of `questions` to which the model answers with the name, though they do not ask for it.

    "Describe the picture" is one: the likeliest anchors are asked, and a single mention is enough.
    """
    images = anchors.images[:n_anchors]
    return questions_that_name(model, processor, anchors.concept, questions, images, batch_size=batch_size)
