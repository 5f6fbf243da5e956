"""How sure a figure is: 95 % intervals by bootstrap over pictures, not over questions about them."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
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


def _quantiles(values: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(values, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)
