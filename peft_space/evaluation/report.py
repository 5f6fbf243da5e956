"""What an evaluation found, what it could not know, and how both are shown."""

from __future__ import annotations

import functools
import os
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from ..canvas import canvas
from ..console import reasons_table
from ..quoting import printable
from ..report import write_json
from .intervals import CONFIDENCE, Estimate, mean_estimate

HELD_OUT, UNKNOWN, RETAINED, STOPPED_ON, TRAINED_ON = "held out", "not known", "retained", "stopped on", "trained on"
DATA = (HELD_OUT, UNKNOWN, RETAINED, STOPPED_ON, TRAINED_ON)
"""What the erasure saw of the data behind a figure, least first: nothing; nobody can say; they are of the public set
or the prompts of which it draws what must stay; they told it when to stop; they are what it trained on."""


@dataclass(frozen=True)
class Figure:
    """One thing that was measured.

    Attributes:
        key: its name in JSON.
        label: its name for a reader.
        unit: "share" (0 to 1), "probability" (0 to 1), "nats", "rank" or "ratio".
        data: one of `DATA`.
        n: answers counted.
        units: independent pictures or texts among them, which the intervals are drawn over.
        base: of the model before; `None` for what compares the two.
        erased: of the erased model.
        change: erased less base, paired answer by answer.
        seed: of the draws behind the intervals.
    """

    key: str
    label: str
    unit: str
    data: str
    n: int
    units: int
    base: Estimate | None
    erased: Estimate
    change: Estimate | None
    seed: int

    @classmethod
    def of(
        cls,
        key: str,
        label: str,
        base: Sequence[float] | None,
        erased: Sequence[float],
        units: Sequence[Hashable],
        *,
        data: str,
        unit: str = "share",
        n_bootstrap: int = 2000,
        seed: int = 0,
    ) -> Figure:
        """The means of what both models got for the same questions, one value an answer."""
        estimate = functools.partial(mean_estimate, units=units, n_bootstrap=n_bootstrap, seed=seed)
        share, difference = ((0.0, 1.0), (-1.0, 1.0)) if unit == "share" else (None, None)
        before = change = None
        if base is not None:
            before = estimate(base, bounds=share)
            change = estimate([now - then for now, then in zip(erased, base, strict=True)], bounds=difference)
        after = estimate(erased, bounds=share)
        return cls(key, label, unit, data, len(erased), len(set(units)), before, after, change, seed)


@dataclass
class Ledger:
    """Figures as they come in.

    Attributes:
        seed: of the intervals.
        n_bootstrap: draws for each.
        figures: by key.
        unknown: what can't be measured, and why.
    """

    seed: int = 0
    n_bootstrap: int = 2000
    figures: dict[str, Figure] = field(default_factory=dict)
    unknown: dict[str, str] = field(default_factory=dict)

    def add(
        self,
        key: str,
        label: str,
        base: Sequence[float] | None,
        erased: Sequence[float],
        units: Sequence[Hashable],
        *,
        data: str,
        unit: str = "share",
    ) -> None:
        """Writes a figure down, as `Figure.of`; where there is no answer it is among what is not known."""
        if not len(erased):
            self.unknown[key] = f"no answer counts towards it: {label}"
            return
        draws = {"n_bootstrap": self.n_bootstrap, "seed": self.seed}
        self.figures[key] = Figure.of(key, label, base, erased, units, data=data, unit=unit, **draws)


@dataclass(frozen=True)
class CollateralPoint:
    """What the erasure took from one other concept.

    Attributes:
        concept: its name.
        similarity: to the erased concept, -1 to 1; see `Collateral.similarity`.
        near: whether it counts as near.
        n: answers counted.
        base: share right before; of `Collateral.measure` "disagreement" it is 1, as the base agrees with itself.
        erased: share right, or in agreement with the base, after.
        drop: base less erased, paired, with its interval.
    """

    concept: str
    similarity: float
    near: bool
    n: int
    base: float
    erased: float
    drop: Estimate


@dataclass(frozen=True)
class Collateral:
    """The collateral curve: what other concepts lost, against how similar they are to the erased one.

    Attributes:
        measure: "accuracy drop" (labelled pictures) or "disagreement" (public ones, against the base's own names).
        similarity: what the similarity is between, in words.
        data: one of `DATA`.
        points: by falling similarity.
    """

    measure: str
    similarity: str
    data: str
    points: tuple[CollateralPoint, ...]

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> Collateral:
        """The curve again, from what `ErasureReport.save` wrote of it."""
        points = [point | {"drop": Estimate.of(point["drop"])} for point in told["points"]]
        return cls(told["measure"], told["similarity"], told["data"], tuple(CollateralPoint(**p) for p in points))

    def figure(self) -> Any:
        """The curve as a figure of matplotlib. Legible in black and white.

        Raises:
            ImportError: matplotlib is not installed.
        """
        page = canvas(6, 3.6)
        axes = page.subplots()
        for near, marker, fill in ((True, "s", "black"), (False, "o", "white")):
            some = [point for point in self.points if point.near is near]
            if not some:
                continue
            drop = np.array([point.drop.value for point in some])
            ends = np.array([[point.drop.low, point.drop.high] for point in some])
            axes.errorbar(
                [point.similarity for point in some],
                drop,
                yerr=np.abs(ends - drop[:, None]).T,
                fmt=marker,
                color="black",
                markerfacecolor=fill,
                elinewidth=0.8,
                capsize=2,
                label="near" if near else "far",
            )
        axes.axhline(0, color="black", linewidth=0.8, linestyle=":")
        axes.set_xlabel(self.similarity)
        axes.set_ylabel(self.measure)
        page.legend(loc="outside right upper", frameon=False)
        return page


@dataclass(frozen=True)
class ErasureReport:
    """What `evaluate_erasure` returns.

    Attributes:
        concept: the name of what was erased.
        aliases: its other names.
        seed: of the intervals and of everything that was drawn.
        figures: what was measured, by key.
        unknown: what was not measured, and why.
        collateral: the curve, where there is one.
        leak: `mean`, `max` and `per_module` of `||dW x|| / ||W x||` on retained inputs; empty where it is not known.
        settings: what the figures depend on beside the model: numbers of images, phrasings, names, data sets.
        seconds: by stage.
    """

    concept: str
    aliases: tuple[str, ...]
    seed: int
    figures: Mapping[str, Figure]
    unknown: Mapping[str, str]
    collateral: Collateral | None = None
    leak: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)

    def __getitem__(self, key: str) -> Figure:
        """The figure of that key.

        Raises:
            KeyError: it was not measured; the message says why, where that is known.
        """
        if key not in self.figures:
            raise KeyError(f"{key!r} was not measured; {self.unknown.get(key, f'there are {sorted(self.figures)}')}")
        return self.figures[key]

    def to_dict(self) -> dict[str, Any]:
        """Everything, in JSON's types."""
        return {"confidence": CONFIDENCE, **asdict(self)}

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Writes `to_dict()` as JSON, whole or not at all.

        Raises:
            OSError: it can't be written; a file that was there still is.
        """
        return write_json(path, self.to_dict())

    def table(self) -> Table:
        """The figures with their intervals, for `rich`."""
        percent = round(100 * CONFIDENCE)
        table = Table(
            title=printable(f"{self.concept}: what was measured, with {percent} % intervals"), title_justify="left"
        )
        table.add_column("figure")
        for column in ("base", "erased"):
            table.add_column(column, justify="right")
        table.add_column("n", justify="right")
        table.add_column("data")
        for figure in self.figures.values():
            base = "" if figure.base is None else figure.base.told()
            table.add_row(
                printable(figure.label), base, figure.erased.told(), f"{figure.n}/{figure.units}", figure.data
            )
        return table

    def unknown_table(self) -> Table:
        """What is not known and why, for `rich`."""
        return reasons_table("what is not known", "what", self.unknown)

    def plot_collateral(self, path: str | os.PathLike[str]) -> Path:
        """Draws the collateral curve; the file's ending says how. Legible in black and white.

        Raises:
            ValueError: there is no curve.
            ImportError: matplotlib is not installed.
        """
        if self.collateral is None:
            why = self.unknown.get("collateral", "none was measured")
            raise ValueError(f"`plot_collateral` needs a report with a collateral curve; got none: {why}")
        page = self.collateral.figure()
        path = Path(path)
        page.savefig(path, dpi=150)
        return path
