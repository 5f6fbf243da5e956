"""What a test-bed model knows, counted on renders that no training has seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import nn

from ..vlm import Prompt, generate
from . import questions
from .bed import STREAM, Bed
from .bestiary import Creature
from .world import BESTIARY


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


def pictures(creature: Creature, n_images: int, seed: int) -> list[tuple[Any, Any]]:
    """Held-out renders: `(scene, picture)` pairs of one creature."""
    return BESTIARY.pictures(creature.name, n_images, seed)


def knowledge(
    model: nn.Module,
    processor: Any,
    *,
    without: str | None = None,
    n_images: int = 24,
    seed: int = 0,
    bed: Bed = BESTIARY,
) -> dict[str, Any]:
    """Asks the model everything the recipe teaches.

    Args:
        without: a name the model was trained without; it is left out here too.
        n_images: held-out renders per name.
        seed: draws the renders.
        bed: the world that the model was trained on.

    Returns:
        Shares of right answers, 0 to 1: `naming` per family and `naming_held_out` in held-out phrasings,
        `naming_by_creature`, `seen` per attribute, `through_picture` per fact, `text` per kind of question, `objects`;
        for a bed with pictures of two names also `groups`, asked for the left one, the right one and both.
    """
    sheet = Sheet()
    rng = np.random.default_rng([STREAM, seed, 99])
    known = [name for name in bed.names if name != without]
    for name in known:
        for scene, picture in bed.pictures(name, n_images, seed):
            for asked in bed.about(scene):
                topic = "name, held out" if asked.about == "name" and asked.held_out else asked.about
                if asked.held_out or (asked.about in ("description", "name") and rng.random() < 0.5):
                    sheet.ask(Prompt(asked.question, picture), asked.answer, topic, name)
            for asked in bed.compare(scene, rng, known):
                sheet.ask(Prompt(asked.question, picture), asked.answer, asked.about, name)
        for asked in bed.in_text(name):
            sheet.ask(Prompt(asked.question), asked.answer, asked.about, name)
    for kind in range(bed.nameless):
        for scene, picture in bed.pictures(kind, n_images // 2, seed):
            for asked in bed.about(scene):
                if asked.held_out:
                    sheet.ask(Prompt(asked.question, picture), asked.answer, "objects", asked.about)
    for asked in questions.general():
        sheet.ask(Prompt(asked.question), asked.answer, "general", "")
    drawn = [rng.permutation(len(known))[:2] for _ in range(4 * n_images)] if bed.together else []
    for scene, picture in bed.pairs([(known[first], known[second]) for first, second in drawn], rng):
        for asked in bed.about(scene):
            if asked.held_out:
                sheet.ask(Prompt(asked.question, picture), asked.answer, "groups", asked.about)
    rates = sheet.rates(generate(model, processor, sheet.prompts, max_new_tokens=12, batch_size=128))

    def mean(about: str, among: Sequence[str] = known) -> float:
        return round(float(np.mean([rates[about, name] for name in among])), 4)

    families = {
        family: among
        for family, names in sorted(bed.groups.items())
        if (among := [name for name in names if name != without])
    }
    told: dict[str, Any] = {
        "naming": {family: mean("name", among) for family, among in families.items()},
        "naming_held_out": {family: mean("name, held out", among) for family, among in families.items()},
        "naming_by_creature": {name: mean("name, held out", [name]) for name in known},
        "description": mean("description"),
        "seen": {key: mean(key) for key in bed.seen},
        "compare": {key: mean(key) for key in ("yes or no", "choice")},
        "through_picture": {key: mean(f"{key} through the picture") for key in bed.facts},
        "text": {key: mean(key) for key in dict.fromkeys(asked.about for asked in bed.in_text(known[0]))},
        "general": rates["general", ""],
        "objects": round(float(np.mean([rate for topic, rate in rates.items() if topic[0] == "objects"])), 4),
    }
    if bed.together is not None:
        told["groups"] = {topic[1]: round(rate, 4) for topic, rate in rates.items() if topic[0] == "groups"}
    return told
