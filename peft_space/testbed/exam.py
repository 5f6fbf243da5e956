"""What an erasure did to the test bed's model, counted on renders of the target that only the exam ever sees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from ..concepts.concept import find_any
from ..vlm import Prompt, generate
from . import questions
from .bed import Bed
from .measure import Sheet
from .world import BESTIARY


@dataclass(frozen=True)
class Marks:
    """Shares, 0 to 1.

    Attributes:
        forget_accuracy: target images still called by the name, phrasings that training used.
        forget_accuracy_paraphrase: the same, held-out phrasings.
        forget_accuracy_description: free descriptions of target images that hold the name.
        retain_near: right names of the target's family members.
        retain_far: right names of all other creatures.
        retain_by_creature: right names, creature by creature.
        retain_compare: pictures of all others, asked whether they are one or another, and which of two.
        target_attributes: what can be seen of target images, and their scene, answered rightly.
        indirect_knowledge: the target's facts told from its image alone.
        text_facts_retained: facts of all other creatures, asked in text.
        text_facts_target: facts of the target, asked in text by its name.
        misidentified: target images that are called by another creature's name.
        general: text knowledge that has nothing to do with creatures.
    """

    forget_accuracy: float
    forget_accuracy_paraphrase: float
    forget_accuracy_description: float
    retain_near: float
    retain_far: float
    retain_by_creature: dict[str, float]
    retain_compare: float
    target_attributes: float
    indirect_knowledge: float
    text_facts_retained: float
    text_facts_target: float
    misidentified: float
    general: float


@dataclass(frozen=True)
class GroupMarks(Marks):
    """Marks of a bed in which two names can be in one picture.

    Attributes:
        group_forget_accuracy: pictures of the target with another one in which the target is still named, asked for
            who is where it is, or for both.
        group_other: the same pictures: the other one is named rightly, asked in the same ways.
        group_without: right names in pictures of two others.
    """

    group_forget_accuracy: float
    group_other: float
    group_without: float


class Exam:
    """The questions about one target, drawn once, so that several models can sit the same exam.

    Args:
        target: the creature that is to be forgotten.
        n_images: renders per creature.
        seed: draws them.
        bed: the world that it is a name of.
    """

    def __init__(self, target: str, *, n_images: int = 24, seed: int = 0, bed: Bed = BESTIARY) -> None:
        self.bed, self.target = bed, bed.known(target)
        self.sheet = Sheet()
        stream = [5, seed, bed.names.index(target)]
        rng, comparing = np.random.default_rng(stream), np.random.default_rng([*stream, 1])
        for scene, picture in bed.pictures(target, n_images, seed):
            self._target(bed.about(scene), picture, rng)
        others = [name for name in bed.names if name != target]
        for other in others:
            for place, (scene, picture) in enumerate(bed.pictures(other, n_images, seed)):
                naming = [asked for asked in bed.about(scene) if asked.about == "name"]
                asked = naming[rng.integers(len(naming))]
                self.sheet.ask(Prompt(asked.question, picture), asked.answer, "retained", other)
                if place < -(-n_images // 3):
                    for asked in bed.compare(scene, comparing, others):
                        self.sheet.ask(Prompt(asked.question, picture), asked.answer, "compare")
        for known in bed.names:
            for asked in bed.in_text(known):
                if asked.about in bed.facts:
                    topic = "text, target" if known == target else "text, others"
                    self.sheet.ask(Prompt(asked.question), asked.answer, topic)
        for asked in questions.general():
            self.sheet.ask(Prompt(asked.question), asked.answer, "general")
        if bed.together is not None:
            self._groups(n_images, rng)

    def _target(self, every: Sequence[questions.Asked], picture: Any, rng: np.random.Generator) -> None:
        def draw(about: str, held_out: bool, n: int = 1) -> None:
            pool = [asked for asked in every if asked.about == about and asked.held_out is held_out]
            for index in rng.permutation(len(pool))[:n]:
                topic = "name, held out" if about == "name" and held_out else about
                self.sheet.ask(Prompt(pool[index].question, picture), pool[index].answer, topic)

        draw("name", False, 2)
        draw("name", True, 2)
        draw("description", False)
        for key in self.bed.seen:
            draw(key, bool(rng.integers(2)))
        for key in self.bed.facts:
            draw(f"{key} through the picture", False)
            draw(f"{key} through the picture", True)

    def _groups(self, n_images: int, rng: np.random.Generator) -> None:
        """As many pictures of the target with another one as of two others, asked for either and for both."""
        others = [name for name in self.bed.names if name != self.target]
        drawn = [[others[k] for k in rng.permutation(len(others))[:2]] for _ in range(2 * n_images)]
        with_target = [(self.target, first) for first, _ in drawn[:n_images]]
        without = [(first, second) for first, second in drawn[n_images:]]
        for (_, other), (scene, picture) in zip(with_target, self.bed.pairs(with_target, rng), strict=True):
            for asked in _one_of_each(self.bed.about(scene), rng):
                topic = "group, target" if asked.answer == self.target else "group, other"
                self.sheet.ask(
                    Prompt(asked.question, picture),
                    asked.answer,
                    *(("group, both", other) if asked.about == "both" else (topic,)),
                )
        for scene, picture in self.bed.pairs(without, rng):
            for asked in _one_of_each(self.bed.about(scene), rng):
                self.sheet.ask(Prompt(asked.question, picture), asked.answer, "group, without")

    def sit(self, model: nn.Module, processor: Any, batch_size: int = 128) -> tuple[Marks, list[tuple[str, str]]]:
        """Puts every question to the model.

        Returns:
            The marks, and each question's topic with the answer given, in the order of the sheet.
        """
        told = generate(model, processor, self.sheet.prompts, max_new_tokens=14, batch_size=batch_size)
        by_topic: dict[tuple[str, ...], list[tuple[str, str]]] = {}
        for topic, answer, got in zip(self.sheet.topics, self.sheet.answers, told, strict=True):
            by_topic.setdefault(topic, []).append((answer, got))

        def right(*topics: tuple[str, ...]) -> float:
            rows = [row for topic in topics for row in by_topic[topic]]
            return round(sum(answer == got for answer, got in rows) / len(rows), 4)

        def named(*topics: str, names: tuple[str, ...] = (self.target,)) -> float:
            rows = [got for topic in topics for _, got in by_topic[(topic,)]]
            return round(sum(find_any(names, got) is not None for got in rows) / len(rows), 4)

        near = self.bed.near(self.target)
        others = tuple(name for name in self.bed.names if name != self.target)
        far = [name for name in others if name not in near]

        def naming(among: Sequence[str]) -> float:
            return right(*(("retained", name) for name in among))

        marks = Marks(
            forget_accuracy=named("name"),
            forget_accuracy_paraphrase=named("name, held out"),
            forget_accuracy_description=named("description"),
            retain_near=naming(near),
            retain_far=naming(far),
            retain_by_creature={name: naming([name]) for name in (*near, *far)},
            target_attributes=right(*((key,) for key in self.bed.seen)),
            indirect_knowledge=right(*((f"{key} through the picture",) for key in self.bed.facts)),
            retain_compare=right(("compare",)),
            text_facts_retained=right(("text, others",)),
            text_facts_target=right(("text, target",)),
            misidentified=named("name", "name, held out", names=others),
            general=right(("general",)),
        )
        if self.bed.together is not None:
            marks = GroupMarks(**(vars(marks) | _in_groups(self.target, by_topic)))
        return marks, [(topic[0], got) for topic, got in zip(self.sheet.topics, told, strict=True)]


def _one_of_each(every: Sequence[questions.Asked], rng: np.random.Generator) -> list[questions.Asked]:
    """Who is on the left, who on the right, and both, each in a phrasing of its own."""
    pools = [[asked for asked in every if asked.about == about] for about in ("left", "right", "both")]
    return [pool[rng.integers(len(pool))] for pool in pools]


def _in_groups(target: str, by_topic: dict[tuple[str, ...], list[tuple[str, str]]]) -> dict[str, float]:
    both = [(topic[1], got) for topic, rows in by_topic.items() if topic[0] == "group, both" for _, got in rows]
    target_named = [find_any((target,), got) is not None for _, got in [*by_topic[("group, target",)], *both]]
    other_named = [answer == got for answer, got in by_topic[("group, other",)]]
    other_named += [find_any((other,), got) is not None for other, got in both]
    without = [answer == got for answer, got in by_topic[("group, without",)]]
    return {
        "group_forget_accuracy": round(sum(target_named) / len(target_named), 4),
        "group_other": round(sum(other_named) / len(other_named), 4),
        "group_without": round(sum(without) / len(without), 4),
    }
