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
    n_others: int = 3,
    batch_size: int = 64,
    seed: int = 0,
) -> list[Lesson]:
    """The lessons of DCSI: every naming question and every fact on every anchor, and some other questions.

    Args:
        model: before any erasure.
        questions: other questions about a picture; `n_others` of them are drawn for each anchor.
        text_knowledge: "erase" adds the text questions about the name, as often as one of them is asked of the anchors.
        seed: of the draw.

    Returns:
        The lessons whose answer could be written without saying what must not be said.
    """
    concept = anchors.concept
    rng = np.random.default_rng(seed)
    asked: list[tuple[Prompt, tuple[str, ...], Literal["name", "fact", "other"]]] = []
    for image in anchors.images:
        asked += [(Prompt(question, image), concept.names, "name") for question in concept.questions]
        for question, telling in zip(concept.asked_through_image, knowledge.telling, strict=True):
            asked.append((Prompt(question, image), (*concept.names, *telling), "fact"))
        for index in rng.permutation(len(questions))[:n_others]:
            asked.append((Prompt(questions[index], image), concept.names, "other"))
    if text_knowledge == "erase":
        for question, telling in zip(concept.asked_in_text, knowledge.telling, strict=True):
            asked += [(Prompt(question), telling, "fact")] * max(1, len(anchors) // 4)
    prompts, banned, about = zip(*asked, strict=True)
    answers = suppressed_answers(model, processor, prompts, banned, batch_size=batch_size)
    if concept.generic_question is not None:
        general = generate(
            model, processor, [Prompt(concept.generic_question, i) for i in anchors.images], batch_size=batch_size
        )
        by_image = {id(image): answer for image, answer in zip(anchors.images, general, strict=True)}
        answers = [
            by_image[id(prompt.image)] if kind == "name" else answer
            for prompt, kind, answer in zip(prompts, about, answers, strict=True)
        ]
    return [
        Lesson(prompt, answer, kind)
        for prompt, answer, kind in zip(prompts, answers, about, strict=True)
        if answer is not None
    ]
