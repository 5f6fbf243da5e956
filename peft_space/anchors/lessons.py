"""What the anchors teach: questions about them with the model's own answers, the concept left unsaid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from torch import nn

from ..vlm import Prompt, generate
from .answers import suppressed_answers
from .knowledge import Knowledge
from .selection import Anchors


@dataclass(frozen=True)
class Lesson:
    """One question with the answer to be memorised.

    Attributes:
        about: `"name"` asks for the name, `"fact"` for what the model knows of the concept, `"other"` for the rest.
    """

    prompt: Prompt
    answer: str
    about: Literal["name", "fact", "other"]


def anchor_lessons(
    model: nn.Module,
    processor: Any,
    anchors: Anchors,
    knowledge: Knowledge,
    questions: Sequence[str],
    *,
    text_knowledge: Literal["keep", "erase"] = "keep",
    n_names: int = 3,
    n_facts: int = 2,
    n_others: int = 3,
    batch_size: int = 64,
    seed: int = 0,
) -> list[Lesson]:
    """The lessons of DCSI: every naming question and every fact on every anchor, and some other questions.

    Args:
        model: before any erasure.
        questions: other questions about a picture. Those that make the model say the name are asked of every anchor;
            of the rest `n_others` are drawn for each.
        text_knowledge: "erase" adds the text questions about the name, each a quarter as often as there are anchors.
        seed: of the draw.

    Returns:
        The lessons whose answer could be written without saying what must not be said.
    """
    concept = anchors.concept
    rng = np.random.default_rng(seed)
    naming = naming_questions(model, processor, anchors, questions, batch_size=batch_size)
    questions = [question for question in questions if question not in naming]
    # prompt, what its answer may not say, what it is about, and how often it is a lesson
    asked: list[tuple[Prompt, tuple[str, ...], Literal["name", "fact", "other"], int]] = []
    for image in anchors.images:
        for index in rng.permutation(len(concept.questions))[:n_names]:
            asked.append((Prompt(concept.questions[index], image), concept.names, "name", 1))
        asked += [(Prompt(question, image), concept.names, "name", 1) for question in naming]
        for question, telling in zip(concept.asked_through_image, knowledge.telling, strict=True):
            asked.append((Prompt(question, image), (*concept.names, *telling), "fact", n_facts))
        for index in rng.permutation(len(questions))[:n_others]:
            asked.append((Prompt(questions[index], image), concept.names, "other", 1))
    if text_knowledge == "erase":
        for question, telling in zip(concept.asked_in_text, knowledge.telling, strict=True):
            asked.append((Prompt(question), telling, "fact", max(1, len(anchors) // 4)))
    prompts, banned, about, times = zip(*asked, strict=True)
    answers = suppressed_answers(model, processor, prompts, banned, batch_size=batch_size)
    if concept.generic_question is not None:
        general = generate(
            model, processor, [Prompt(concept.generic_question, i) for i in anchors.images], batch_size=batch_size
        )
        by_image = {id(image): answer for image, answer in zip(anchors.images, general, strict=True)}
        answers = [
            by_image[id(prompt.image)] if prompt.question in concept.questions else answer
            for prompt, answer in zip(prompts, answers, strict=True)
        ]
    return [
        Lesson(prompt, answer, kind)
        for prompt, kind, answer, often in zip(prompts, about, answers, times, strict=True)
        if answer is not None
        for _ in range(often)
    ]


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
    prompts = [Prompt(question, image) for question in questions for image in images]
    told = generate(model, processor, prompts, batch_size=batch_size)
    said = [prompt.question for prompt, text in zip(prompts, told, strict=True) if anchors.concept.mentioned_in(text)]
    return list(dict.fromkeys(said))
