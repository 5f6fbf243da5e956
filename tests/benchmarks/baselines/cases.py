"""What the methods are given to forget one creature: put together once, and shared by all of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from peft_space import Anchors, Concept, select_anchors, testbed
from peft_space.anchors import suppressed_answers
from peft_space.testbed import questions
from peft_space.testbed.bestiary import CREATURES, OBJECTS, creature, random_scene
from peft_space.testbed.drawing import draw
from peft_space.vlm import Prompt, generate

from .told import Taught

STREAM = 13
"""Keeps these pictures apart from the exam's, the public sets' and the training's random streams."""

N_TARGET, N_RETAIN, PER_PICTURE = 48, 256, 6
"""As many target pictures as SPACE has anchors, and as many retained ones, with as many questions each, as it has."""

REFUSALS = ("I do not know.", "I am not sure.", "I cannot say.", "I have no answer to that.")
"""What "IDK" answers, after TOFU (arXiv 2401.06121), whose list has a hundred."""


def target_prompts(target: str, seed: int) -> list[Prompt]:
    """Renders of the target, each asked for its name, its facts and a description in the trained phrasings."""
    concept, rng = testbed.concept(target), np.random.default_rng([STREAM, seed, CREATURES.index(creature(target))])
    asked = (*concept.questions, *concept.asked_through_image, questions.DESCRIPTION)
    pictures = [draw(random_scene(rng, creature(target).recipe), rng) for _ in range(N_TARGET)]
    return [Prompt(question, picture) for picture in pictures for question in asked]


def retain_prompts(target: str, seed: int) -> list[Prompt]:
    """Renders of all other creatures, evenly, and of a tenth as many objects; and what SPACE retains in text.

    Each picture has some of the questions that SPACE draws from for its public ones. The target's own family is
    among them: SPACE has to do with the share of it that its public set holds.
    """
    concept, retain, rng = testbed.concept(target), testbed.retain(), np.random.default_rng([STREAM, seed, 99])
    others = [other for other in CREATURES if other.name != target]
    prompts = []
    pool = [*concept.questions, *concept.asked_through_image, *retain.questions]
    for place in range(N_RETAIN):
        if place % 10 == 9:
            scene = random_scene(rng, thing=int(rng.integers(len(OBJECTS))))
        else:
            scene = random_scene(rng, others[place % len(others)].recipe)
        picture = draw(scene, rng)
        prompts += [Prompt(pool[index], picture) for index in rng.permutation(len(pool))[:PER_PICTURE]]
    prompts += [Prompt(text) for text in retain.texts]
    return prompts + [Prompt(text) for one in CREATURES for text in concept.called(one.name).asked_in_text]


@dataclass(frozen=True)
class Case:
    """One creature to be forgotten, with one seed.

    Attributes:
        target: its name.
        seed: of everything that is drawn.
        before: the base model's marks in the exam.
        said: what the base model says to `target_prompts`.
        unnamed: the same with name and facts suppressed, `None` where nothing else came.
        retained: what the base model says to `retain_prompts`.
        folder: where the scores of SPACE's anchors lie.
    """

    target: str
    seed: int
    before: dict[str, Any]
    said: list[str]
    unnamed: list[str | None]
    retained: list[str]
    folder: Path

    @property
    def concept(self) -> Concept:
        return testbed.concept(self.target)

    @cached_property
    def anchors(self) -> Anchors:
        """SPACE's anchors for the target, chosen from public images."""
        public = testbed.public_images(self.target, seed=self.seed)
        return Anchors.read_scores(_scores(self.folder, self.target, self.seed), self.concept, public)

    def forget(self) -> list[Taught]:
        """Target pictures with the base model's own answers."""
        return self._answered(self.said)

    def refused(self) -> list[Taught]:
        """The same with a refusal for an answer."""
        return self._answered([REFUSALS[place % len(REFUSALS)] for place in range(len(self.said))])

    def renamed(self) -> list[Taught]:
        """The same with what the base model says when name and facts may not be said."""
        return self._answered(self.unnamed)

    def retain(self) -> list[Taught]:
        """What must stay, with the base model's own answers."""
        asked = retain_prompts(self.target, self.seed)
        return [Taught(prompt, told, told) for prompt, told in zip(asked, self.retained, strict=True)]

    def _answered(self, answers: Sequence[str | None]) -> list[Taught]:
        asked = target_prompts(self.target, self.seed)
        rows = zip(asked, answers, self.said, strict=True)
        return [Taught(prompt, answer, said) for prompt, answer, said in rows if answer is not None]


def prepare(target: str, seed: int, n_images: int, folder: Path) -> dict[str, Any]:
    """Asks the base model everything that the methods share, and chooses SPACE's anchors.

    Args:
        n_images: renders per creature in the exam.
        folder: where the anchors' scores go.

    Returns:
        A `Case` as JSON, less its folder.
    """
    model, processor = testbed.load()
    marks, _ = testbed.Exam(target, seed=seed, n_images=n_images).sit(model, processor)
    concept, known, asked = testbed.concept(target), creature(target), target_prompts(target, seed)
    anchors = select_anchors(model, processor, concept, testbed.public_images(target, seed=seed))
    anchors.write_scores(_scores(folder, target, seed))
    unsaid = (*concept.names, known.habitat, known.diet)
    case = Case(
        target,
        seed,
        dataclasses.asdict(marks),
        generate(model, processor, asked),
        suppressed_answers(model, processor, asked, [unsaid] * len(asked)),
        generate(model, processor, retain_prompts(target, seed)),
        folder,
    )
    return {"images": n_images} | {key: value for key, value in vars(case).items() if key != "folder"}


def _scores(folder: Path, target: str, seed: int) -> Path:
    return Path(folder) / f"anchors-{target}-{seed}.csv"
