"""How sure a figure is: 95 % intervals by bootstrap over pictures, not over questions about them."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A figure and how sure it is.

    Attributes:
        value: the figure.
        low: lower end of its 95 % interval; `nan` where there is a single unit to draw from.
        high: upper end.
    """

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, told: Mapping[str, float | None]) -> Estimate:
        """The estimate again, from JSON, where `nan` is `null`."""
        return cls(**{key: math.nan if value is None else value for key, value in told.items()})

    def told(self, digits: int = 3) -> str:
        """`0.125 [0.031, 0.250]`; without the interval where there is none."""
        if self.low != self.low:
            return f"{self.value:.{digits}f}"
        return f"{self.value:.{digits}f} [{self.low:.{digits}f}, {self.high:.{digits}f}]"


def mean_estimate(
    values: Sequence[float],
    units: Sequence[Hashable],
    *,
    bounds: tuple[float, float] | None = None,
    n_bootstrap: int = 2000,
    seed: int = 0,
) -> Estimate:
    """A mean with its percentile bootstrap interval (Efron and Tibshirani 1993), drawn over units.

    Answers about one picture go together, so whole units are drawn: as if other pictures had been taken, and not only
    other questions.

    Args:
        values: one per answer.
        units: for each answer the picture, or text, that it is about.
        bounds: least and most that the mean can be, of values that are whole numbers: (0, 1) of shares, (-1, 1) of
            their changes. Where all values are the same, resampling can't tell how sure they are; the interval then
            reaches as far as the exact binomial one (Clopper and Pearson 1934) of as many units does from 0 or 1.
        n_bootstrap: how often to draw.
        seed: of the draws.

    Raises:
        ValueError: there are no values, or not one unit for each.
    """
    if not len(values) or len(values) != len(units):
        raise ValueError(f"`values` must be some, with a unit each; got {len(values)} and {len(units)} units.")
    x = np.asarray(values, dtype=np.float64)
    places: dict[Hashable, int] = {}
    unit = np.array([places.setdefault(one, len(places)) for one in units])
    mean, n_units = float(x.mean()), len(places)
    if bounds is not None and len(set(x.tolist())) == 1:
        reach = 1 - ((1 - CONFIDENCE) / 2) ** (1 / n_units)
        return Estimate(mean, max(bounds[0], mean - reach), min(bounds[1], mean + reach))
    if n_units == 1:
        return Estimate(mean, float("nan"), float("nan"))
    sums, counts = np.bincount(unit, weights=x), np.bincount(unit)
    drawn = np.random.default_rng([seed, 8]).multinomial(n_units, np.full(n_units, 1 / n_units), size=n_bootstrap)
    means = drawn @ sums / (drawn @ counts)
    return Estimate(mean, *_quantiles(means))


def halved_estimate(value: float, halves: Sequence[float]) -> Estimate:
    """The interval of a figure that repeats would distort, such as an entropy: from random halves of the sample.

    A figure of half a sample, drawn without repeats, scatters about its mean as one of a bootstrap sample does about
    its own (Politis, Romano and Wolf 1999, delete-d with d = n / 2).

    Args:
        value: of the whole sample.
        halves: of random halves.
    """
    scatter = np.asarray(halves) - np.mean(halves)
    low, high = _quantiles(scatter)
    return Estimate(value, value + low, value + high)


def difference(first: Estimate, second: Estimate) -> Estimate:
    """One figure less another that was drawn independently, with the interval that their two intervals give.

    Source: Zou and Donner 2008 (MOVER), which squares and adds the distances to the ends that matter; Newcombe 1998
    for shares. Of two figures from the same pictures it is too wide rather than too narrow where they go together.
    """
    value = first.value - second.value
    down = math.hypot(first.value - first.low, second.high - second.value)
    up = math.hypot(first.high - first.value, second.value - second.low)
    return Estimate(value, value - down, value + up)


def auc_estimate(
    positives: Mapping[Hashable, Sequence[float]],
    negatives: Mapping[Hashable, Sequence[float]],
    *,
    n_bootstrap: int = 2000,
    seed: int = 0,
) -> Estimate:
    """The area under the ROC curve with its percentile bootstrap interval, drawn over units.

    It is the chance that a positive scores higher than a negative; equal scores count half (Mann and Whitney 1947).
    Where all positives are on one side of all negatives, the interval is as wide as the exact binomial one of as many
    units as the smaller side has.

    Args:
        positives: scores by the unit, a picture, that they are about.
        negatives: the same; a unit that is in both is drawn with both.
        n_bootstrap: how often to draw.
        seed: of the draws.

    Raises:
        ValueError: one side is empty.
    """
    if not positives or not negatives:
        raise ValueError(
            f"`positives` and `negatives` must each hold a unit; got {len(positives)} and {len(negatives)}."
        )
    sides = [list(side.values()) for side in (positives, negatives)]
    sizes = [np.array([len(scores) for scores in side]) for side in sides]
    high, low = (np.array([score for scores in side for score in scores], dtype=np.float64) for side in sides)
    wins = (high[:, None] > low) + (high[:, None] == low) / 2
    for axis, size in enumerate(sizes):
        # from pairs of scores to pairs of units
        wins = np.add.reduceat(wins, np.cumsum(size) - size, axis=axis)
    value = float(wins.sum()) / (len(high) * len(low))
    if value in (0.0, 1.0):
        reach = 1 - ((1 - CONFIDENCE) / 2) ** (1 / min(len(positives), len(negatives)))
        return Estimate(value, max(0.0, value - reach), min(1.0, value + reach))
    places = {unit: place for place, unit in enumerate(dict.fromkeys([*positives, *negatives]))}
    n_units = len(places)
    drawn = np.random.default_rng([seed, 13]).multinomial(n_units, np.full(n_units, 1 / n_units), size=n_bootstrap)
    rows, columns = (drawn[:, [places[unit] for unit in side]] for side in (positives, negatives))
    pairs = (rows @ sizes[0]) * (columns @ sizes[1])
    areas = ((rows @ wins) * columns).sum(1)[pairs > 0] / pairs[pairs > 0]
    return Estimate(value, *_quantiles(areas))


def _quantiles(values: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(values, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)
