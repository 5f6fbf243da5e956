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
from .bestiary import BY_NAME, CREATURES, Creature, creature, siblings
from .measure import Sheet, pictures


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
    target_attributes: float
    indirect_knowledge: float
    text_facts_retained: float
    text_facts_target: float
    misidentified: float
    general: float


class Exam:
    """The questions about one target, drawn once, so that several models can sit the same exam.

    Args:
        target: the creature that is to be forgotten.
        n_images: renders per creature.
        seed: draws them.
    """

    def __init__(self, target: str, *, n_images: int = 24, seed: int = 0) -> None:
        self.target = creature(target)
        self.sheet = Sheet()
        rng = np.random.default_rng([5, seed, CREATURES.index(self.target)])
        for scene, picture in pictures(self.target, n_images, seed):
            self._target(questions.about_picture(scene), picture, rng)
        for other in CREATURES:
            if other is not self.target:
                for scene, picture in pictures(other, n_images, seed):
                    naming = [asked for asked in questions.about_picture(scene) if asked.about == "name"]
                    asked = naming[rng.integers(len(naming))]
                    self.sheet.ask(Prompt(asked.question, picture), asked.answer, "retained", other.name)
        for known in CREATURES:
            for asked in questions.in_text(known):
                if asked.about in questions.FACTS:
                    topic = "text, target" if known is self.target else "text, others"
                    self.sheet.ask(Prompt(asked.question), asked.answer, topic)
        for asked in questions.general():
            self.sheet.ask(Prompt(asked.question), asked.answer, "general")

    def _target(self, every: Sequence[questions.Asked], picture: Any, rng: np.random.Generator) -> None:
        def draw(about: str, held_out: bool, n: int = 1) -> None:
            pool = [asked for asked in every if asked.about == about and asked.held_out is held_out]
            for index in rng.permutation(len(pool))[:n]:
                topic = "name, held out" if about == "name" and held_out else about
                self.sheet.ask(Prompt(pool[index].question, picture), pool[index].answer, topic)

        draw("name", False, 2)
        draw("name", True, 2)
        draw("description", False)
        for key in questions.SEEN:
            draw(key, bool(rng.integers(2)))
        for key in questions.FACTS:
            draw(f"{key} through the picture", False)
            draw(f"{key} through the picture", True)

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

        def named(*topics: str, names: tuple[str, ...] = (self.target.name,)) -> float:
            rows = [got for topic in topics for _, got in by_topic[(topic,)]]
            return round(sum(find_any(names, got) is not None for got in rows) / len(rows), 4)

        near = siblings(self.target.name)
        far = [c for c in CREATURES if c is not self.target and c not in near]
        others = tuple(name for name in BY_NAME if name != self.target.name)

        def naming(among: Sequence[Creature]) -> float:
            return right(*(("retained", one.name) for one in among))

        marks = Marks(
            forget_accuracy=named("name"),
            forget_accuracy_paraphrase=named("name, held out"),
            forget_accuracy_description=named("description"),
            retain_near=naming(near),
            retain_far=naming(far),
            retain_by_creature={one.name: naming([one]) for one in (*near, *far)},
            target_attributes=right(*((key,) for key in questions.SEEN)),
            indirect_knowledge=right(*((f"{key} through the picture",) for key in questions.FACTS)),
            text_facts_retained=right(("text, others",)),
            text_facts_target=right(("text, target",)),
            misidentified=named("name", "name, held out", names=others),
            general=right(("general",)),
        )
        return marks, [(topic[0], got) for topic, got in zip(self.sheet.topics, told, strict=True)]
