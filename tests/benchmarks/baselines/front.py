"""Who is beaten by whom: the Pareto front of forgetting against retention, and what is claimed of SPACE."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from peft_space.evaluation.intervals import Estimate, mean_estimate

from .tuning import forget_accuracy

Rows = Sequence[Mapping[str, Any]]
NEAR, FAR = "retain_near", "retain_far"


def on_front(points: Mapping[str, tuple[float, float]]) -> set[str]:
    """Those that no other beats.

    Args:
        points: forget accuracy, of which less is better, and retention, of which more is. One point beats another
            where it is as good in both and better in one; equal points don't beat each other.
    """

    def beats(a: tuple[float, float], b: tuple[float, float]) -> bool:
        return a != b and a[0] <= b[0] and a[1] >= b[1]

    return {name for name, point in points.items() if not any(beats(other, point) for other in points.values())}


def values(rows: Rows, mark: str) -> np.ndarray:
    """One figure for each run; `"forget"` is the mean over the ways of asking."""
    return np.array([forget_accuracy(r["marks"]) if mark == "forget" else r["marks"][mark] for r in rows])


def estimate(rows: Rows, mark: str) -> Estimate:
    """The mean over runs with its bootstrap interval, drawn over creatures: runs of one go together."""
    return mean_estimate(values(rows, mark).tolist(), [row["target"] for row in rows])


def points(by_method: Mapping[str, Rows], mark: str) -> dict[str, tuple[float, float]]:
    """Each method's forget accuracy and retention, means over runs."""
    return {name: _point(values(rows, "forget").mean(), values(rows, mark).mean()) for name, rows in by_method.items()}


def _point(forget: float, kept: float) -> tuple[float, float]:
    # what is equal but for rounding is equal
    return round(float(forget), 6), round(float(kept), 6)


def share_on_front(by_method: Mapping[str, Rows], name: str, mark: str, n_bootstrap: int = 1000) -> float:
    """How often `name` is on the front where creatures are drawn anew, the same for every method."""
    targets = sorted({row["target"] for row in by_method[name]})
    drawn = np.random.default_rng(8).integers(len(targets), size=(n_bootstrap, len(targets)))
    grouped = {
        method: [[row for row in rows if row["target"] == target] for target in targets]
        for method, rows in by_method.items()
    }
    sums = {
        method: np.array([[values(some, "forget").sum(), values(some, mark).sum(), len(some)] for some in groups])
        for method, groups in grouped.items()
    }
    hits = 0
    for picks in drawn:
        means = {method: table[picks].sum(0) for method, table in sums.items()}
        hits += name in on_front({method: _point(m[0] / m[2], m[1] / m[2]) for method, m in means.items()})
    return hits / n_bootstrap


@dataclass(frozen=True)
class Comparison:
    """SPACE against one other method.

    Attributes:
        other: its name.
        forget: SPACE's forget accuracy and the other's.
        near: the same of names near.
        gain: SPACE's names near less the other's, run by run, with an interval over creatures.
    """

    other: str
    forget: tuple[float, float]
    near: tuple[float, float]
    gain: Estimate

    @property
    def beats(self) -> bool:
        """The bar: more names near, at equal or lower forget accuracy."""
        return self.forget[0] <= self.forget[1] and self.near[0] > self.near[1]


def compare(by_method: Mapping[str, Rows], others: Iterable[str], name: str = "SPACE") -> list[Comparison]:
    """`name` against each of `others`, on the runs that both have."""
    found = []
    for other in others:
        mine = {(row["target"], row["seed"]): row for row in by_method[name]}
        pairs = [(mine[at], row) for row in by_method[other] if (at := (row["target"], row["seed"])) in mine]
        ours, theirs = ([pair[side] for pair in pairs] for side in (0, 1))
        gains = values(ours, NEAR) - values(theirs, NEAR)
        (f_ours, n_ours), (f_theirs, n_theirs) = points({"ours": ours, "theirs": theirs}, NEAR).values()
        units = [row["target"] for row in theirs]
        found.append(Comparison(other, (f_ours, f_theirs), (n_ours, n_theirs), mean_estimate(gains.tolist(), units)))
    return found
