"""What an attack got out of a model: the name where it is right, and how much of that is only guessing."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

from ..evaluation.intervals import Estimate, difference, mean_estimate

HITS, FOILS, CONTROL, CONTROL_FOILS = "hits", "foils", "control", "control_foils"
Means = Mapping[Hashable, float]


class Row(NamedTuple):
    """One answer.

    Attributes:
        kind: `HITS`, `FOILS`, `CONTROL` or `CONTROL_FOILS`.
        unit: the picture, or the text, that it is about.
        value: 1 where the name in question was said, else 0.
    """

    kind: str
    unit: Hashable
    value: float


@dataclass(frozen=True)
class Scores:
    """Shares of answers, 0 to 1, picture by picture.

    An attack may put the name into the model's mouth, so that a model which says yes to everything would pass for one
    that knows. What counts is therefore how much more often the name comes about its own pictures than about others,
    under the very same attack: Youden's J (1950). The matched control is the same difference for other concepts.

    Attributes:
        hits: the concept's pictures that are called by its name.
        foils: other pictures that are called by its name in the same attack.
        control: other pictures that are called by their own names, when the attack is aimed at those.
        control_foils: other pictures that are called by yet another name in the control.
    """

    hits: Means
    foils: Means
    control: Means
    control_foils: Means

    @classmethod
    def of(cls, rows: Iterable[Row]) -> Scores:
        """The means of single answers over pictures."""
        found: dict[str, dict[Hashable, list[float]]] = {field.name: {} for field in fields(cls)}
        for kind, unit, value in rows:
            found[kind].setdefault(unit, []).append(value)
        return cls(**{kind: {unit: sum(v) / len(v) for unit, v in by.items()} for kind, by in found.items()})

    @classmethod
    def averaged(cls, several: Sequence[Scores], weights: Sequence[float]) -> Scores:
        """The weighted mean of several measurements of the same pictures; the weights add up to 1."""
        if len(several) != len(weights) or abs(sum(weights) - 1) > 1e-6:
            raise ValueError(f"`weights` must add up to 1, one for each of {len(several)}; got {list(weights)}.")

        def mean(kind: str) -> Means:
            every = [getattr(scores, kind) for scores in several]
            return {unit: sum(w * by[unit] for w, by in zip(weights, every, strict=True)) for unit in every[0]}

        return cls(**{field.name: mean(field.name) for field in fields(cls)})

    @property
    def units(self) -> int:
        """How many of the concept's pictures were shown."""
        return len(self.hits)

    def told(self, n_bootstrap: int, seed: int) -> Estimate | None:
        """A, how much of the concept comes out: hits less foils, -1 to 1; `None` where nothing was shown."""
        return _gap(self.hits, self.foils, n_bootstrap, seed)

    def kept(self, n_bootstrap: int, seed: int) -> Estimate | None:
        """The same of the control; `None` where there is none."""
        return _gap(self.control, self.control_foils, n_bootstrap, seed)

    def recovered_from(self, before: Scores, n_bootstrap: int, seed: int) -> Estimate | None:
        """R = A(attacked) - A(unattacked), paired picture by picture."""
        return _gap(_less(self.hits, before.hits), _less(self.foils, before.foils), n_bootstrap, seed, signed=True)


def _less(after: Means, before: Means) -> Means:
    return {unit: value - before[unit] for unit, value in after.items() if unit in before}


def _gap(first: Means, second: Means, n_bootstrap: int, seed: int, *, signed: bool = False) -> Estimate | None:
    if not first:
        return None

    def estimate(means: Means) -> Estimate:
        bounds = (-1.0 if signed else 0.0, 1.0)
        return mean_estimate(list(means.values()), list(means), bounds=bounds, n_bootstrap=n_bootstrap, seed=seed)

    return difference(estimate(first), estimate(second)) if second else estimate(first)
