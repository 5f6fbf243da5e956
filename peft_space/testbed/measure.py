"""What a test-bed model knows, counted on renders that no training has seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import nn

from ..vlm import Prompt, generate
from . import questions
from .bestiary import CREATURES, OBJECTS, Creature, random_scene
from .drawing import draw

_STREAM = 7
"""Keeps held-out renders apart from the training's and the public sets' random streams."""


@dataclass
class Sheet:
    """Questions with their true answers, to be put to a model in one go."""

    prompts: list[Prompt] = field(default_factory=list)
    answers: list[str] = field(default_factory=list)
    topics: list[tuple[str, ...]] = field(default_factory=list)

    def ask(self, prompt: Prompt, answer: str, *topic: str) -> None:
        self.prompts.append(prompt)
        self.answers.append(answer)
        self.topics.append(topic)

    def rates(self, told: Sequence[str]) -> dict[tuple[str, ...], float]:
        """Share of right answers per topic, 0 to 1."""
        right: dict[tuple[str, ...], list[bool]] = {}
        for topic, answer, got in zip(self.topics, self.answers, told, strict=True):
            right.setdefault(topic, []).append(got == answer)
        return {topic: sum(hits) / len(hits) for topic, hits in right.items()}


def pictures(creature: Creature | None, n_images: int, seed: int, thing: int | None = None) -> list[tuple[Any, Any]]:
    """Held-out renders: `(scene, picture)` pairs of one creature, or of an object."""
    number = CREATURES.index(creature) if creature is not None else 100 + (thing or 0)
    rng = np.random.default_rng([_STREAM, seed, number])
    scenes = [random_scene(rng, creature.recipe if creature else None, thing) for _ in range(n_images)]
    return [(scene, draw(scene, rng)) for scene in scenes]


def knowledge(
    model: nn.Module, processor: Any, *, without: str | None = None, n_images: int = 24, seed: int = 0
) -> dict[str, Any]:
    """Asks the model everything the recipe teaches.

    Args:
        without: a creature the model was trained without; it is left out here too.
        n_images: held-out renders per creature.
        seed: draws the renders.

    Returns:
        Shares of right answers, 0 to 1: `naming` per family and `naming_held_out` in held-out phrasings,
        `naming_by_creature`, `seen` per attribute, `through_picture` per fact, `text` per kind of question, `objects`.
    """
    sheet = Sheet()
    rng = np.random.default_rng([_STREAM, seed, 99])
    for creature in CREATURES:
        if creature.name == without:
            continue
        for scene, picture in pictures(creature, n_images, seed):
            for asked in questions.about_picture(scene):
                topic = "name, held out" if asked.about == "name" and asked.held_out else asked.about
                if asked.held_out or (asked.about in ("description", "name") and rng.random() < 0.5):
                    sheet.ask(Prompt(asked.question, picture), asked.answer, topic, creature.name)
            for asked in questions.compare(creature, rng, [c for c in CREATURES if c.name != without]):
                sheet.ask(Prompt(asked.question, picture), asked.answer, asked.about, creature.name)
        for asked in questions.in_text(creature):
            sheet.ask(Prompt(asked.question), asked.answer, asked.about, creature.name)
    for thing in range(len(OBJECTS)):
        for scene, picture in pictures(None, n_images // 2, seed, thing):
            for asked in questions.about_picture(scene):
                if asked.held_out:
                    sheet.ask(Prompt(asked.question, picture), asked.answer, "objects", asked.about)
    for asked in questions.general():
        sheet.ask(Prompt(asked.question), asked.answer, "general", "")
    rates = sheet.rates(generate(model, processor, sheet.prompts, max_new_tokens=12, batch_size=128))
    known = [creature for creature in CREATURES if creature.name != without]

    def mean(about: str, among: Sequence[Creature] = known) -> float:
        return round(float(np.mean([rates[about, creature.name] for creature in among])), 4)

    def family(name: str) -> list[Creature]:
        return [creature for creature in known if creature.family == name]

    families = sorted({creature.family for creature in known})
    return {
        "naming": {name: mean("name", family(name)) for name in families},
        "naming_held_out": {name: mean("name, held out", family(name)) for name in families},
        "naming_by_creature": {c.name: mean("name, held out", [c]) for c in known},
        "description": mean("description"),
        "seen": {key: mean(key) for key in questions.SEEN},
        "compare": {key: mean(key) for key in ("yes or no", "choice")},
        "through_picture": {key: mean(f"{key} through the picture") for key in questions.FACTS},
        "text": {key: mean(key) for key in ("habitat", "diet", "kind", "who, by habitat", "who, by diet")},
        "general": rates["general", ""],
        "objects": round(float(np.mean([rate for topic, rate in rates.items() if topic[0] == "objects"])), 4),
    }
