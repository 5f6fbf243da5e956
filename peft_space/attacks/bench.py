"""What all attacks of one audit share: the models, the pictures, and what was found so far."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from .aims import Aims
from .asking import MOST_QUESTIONS, Asked, asked_openly, score
from .outcome import Outcome, Reading
from .scores import Scores
from .sides import Sides

NEEDS_PICTURES = (
    "it needs pictures of the concept, and there are none, nor public images that the base calls by the name: pass "
    "`target_images`, or `public_images` that resemble it"
)
NEEDS_CONTROL = "it needs pictures of other concepts: pass `labelled` or `public_images`"


@dataclass
class Bench:
    """An audit under way.

    Attributes:
        sides: the models.
        aims: the pictures.
        seed: of everything that is drawn.
        n_bootstrap: draws for each interval.
        before: what each model tells before any attack, by `plain` questions.
        outcomes: as they come in.
        unknown: what could not be run, and why.
    """

    sides: Sides
    aims: Aims
    seed: int
    n_bootstrap: int
    before: dict[str, Scores] = field(default_factory=dict)
    outcomes: list[Outcome] = field(default_factory=list)
    unknown: dict[str, str] = field(default_factory=dict)

    @property
    def draws(self) -> dict[str, Any]:
        return {"n_bootstrap": self.n_bootstrap, "seed": self.seed}

    def plain(self, aims: Aims | None = None, each: int | None = None) -> list[Asked]:
        """The concept's own first questions about every picture."""
        aims = aims or self.aims
        return asked_openly(aims, aims.concept.questions[:MOST_QUESTIONS], each)

    def score(self, model: nn.Module, asked: Sequence[Asked]) -> Scores:
        """One model's answers, judged."""
        sides = self.sides
        options = {"max_new_tokens": sides.max_new_tokens, "batch_size": sides.batch_size}
        return score(model, sides.processor, asked, **options)

    def ask_each(self, asked: Sequence[Asked]) -> dict[str, Scores]:
        """Every model's answers, judged."""
        return self.sides.each(lambda model: self.score(model, asked))

    def unattacked(self) -> Outcome | None:
        """Measures the models before any attack; what they recover is counted from there."""
        self.before = self.ask_each(self.plain())
        return self._outcome("unattacked", "before any attack", self.before, None)

    def add(self, key: str, label: str, scores: Mapping[str, Scores], **rest: Any) -> None:
        """Judges an attack by the answers under it."""
        found = self._outcome(key, label, scores, rest.pop("before", self.before), **rest)
        if found is None:
            self.unknown[key] = "no picture of the concept could be put to it"
        else:
            self.outcomes.append(found)

    def add_readings(self, key: str, label: str, readings: Mapping[str, Reading], units: int, **rest: Any) -> None:
        """Judges an attack by figures that were read otherwise."""
        data = rest.pop("data", self.aims.data)
        self.outcomes.append(Outcome.judged(key, label, readings, data=data, units=units, **rest))

    def _outcome(
        self, key: str, label: str, scores: Mapping[str, Scores], before: Mapping[str, Scores] | None, **rest: Any
    ) -> Outcome | None:
        readings = {
            side: Reading.of(some, None if before is None else before[side], **self.draws)
            for side, some in scores.items()
        }
        known = {side: reading for side, reading in readings.items() if reading is not None}
        if len(known) < len(readings):
            return None
        units = next(iter(scores.values())).units
        data = rest.pop("data", self.aims.data)
        return Outcome.judged(key, label, known, data=data, units=units, **rest)

    def missing(self, kind: str, *, train: int = 0) -> bool:
        """Whether an attack lacks pictures; it is then among what is not known.

        Args:
            train: pictures of other concepts that it trains on, at least.
        """
        if not self.aims.target:
            self.unknown[kind] = NEEDS_PICTURES
        elif not self.aims.control or len(self.aims.control_train) < train:
            self.unknown[kind] = NEEDS_CONTROL
        return kind in self.unknown
