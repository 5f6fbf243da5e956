"""The figures of an audit, legible in black and white."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..canvas import canvas
from .outcome import Outcome
from .sides import BASE, ERASED, ORACLE

_MARKS = {BASE: ("o", "white"), ERASED: ("s", "black"), ORACLE: ("^", "grey")}
_LINES = {BASE: ":", ERASED: "-", ORACLE: "--"}
_DRAWN = (
    ("relearning", "optimiser steps", "told, less false alarms"),
    ("probe", "layer, 0: the embeddings", "AUC"),
    ("removal", "strength of the adapter", "told, less false alarms"),
)
FIGURES = ("attacks.png", *(f"{kind}.png" for kind, _, _ in _DRAWN))
"""Every figure that an audit may have."""


def plots(outcomes: Sequence[Outcome]) -> dict[str, Callable[[Path], None]]:
    """What there is to draw: by file name, a function that draws it there.

    Raises:
        ImportError: matplotlib is not installed.
    """
    canvas(1, 1)  # without matplotlib nothing of what follows can be drawn
    found: dict[str, Callable[[Path], None]] = {}
    if outcomes:
        found[FIGURES[0]] = lambda path: _attacks(outcomes, path)
    for kind, axis, what in _DRAWN:
        drawn = [outcome for outcome in outcomes if outcome.kind == kind and outcome.curves]
        if drawn:
            found[f"{kind}.png"] = _drawer(drawn, axis, what)
    return found


def _drawer(outcomes: Sequence[Outcome], axis: str, what: str) -> Callable[[Path], None]:
    return lambda path: _curves(outcomes, axis, what, path)


def _attacks(outcomes: Sequence[Outcome], path: Path) -> None:
    """Every attack on a line: what came out of each model, with intervals; a cross is the erased model's control."""
    page = canvas(8, 1.2 + 0.24 * len(outcomes))
    axes = page.subplots()
    for side, (marker, fill) in _MARKS.items():
        some = [(place, o.readings[side].told) for place, o in enumerate(outcomes) if side in o.readings]
        if not some:
            continue
        value = np.array([told.value for _, told in some])
        ends = np.array([[told.low, told.high] for _, told in some])
        axes.errorbar(
            value,
            [place for place, _ in some],
            xerr=np.nan_to_num(np.abs(ends - value[:, None])).T,
            fmt=marker,
            color="black",
            markerfacecolor=fill,
            markersize=5,
            elinewidth=0.7,
            label=side,
        )
    controls = [(place, o.readings[ERASED].control) for place, o in enumerate(outcomes)]
    known = [(control.value, place) for place, control in controls if control is not None]
    if known:
        axes.plot(*zip(*known, strict=True), "x", color="black", markersize=5, label="control of the erased")
    axes.axvline(0, color="black", linewidth=0.6, linestyle=":")
    axes.set_yticks(range(len(outcomes)), [o.label for o in outcomes], fontsize=7)
    axes.invert_yaxis()
    axes.set_xlabel("told (name on its own pictures less name on others; AUC for probes and membership)")
    axes.legend(
        frameon=False, fontsize=7, loc="upper center", bbox_to_anchor=(0.5, 1 + 0.9 / (1 + len(outcomes) / 4)), ncols=4
    )
    page.savefig(path, dpi=150)


def _curves(outcomes: Sequence[Outcome], axis: str, what: str, path: Path) -> None:
    columns = min(4, len(outcomes))
    rows = -(-len(outcomes) // columns)
    page = canvas(1 + 2.6 * columns, 0.6 + 2.2 * rows)
    grid = page.subplots(rows, columns, squeeze=False, sharey=True)
    for place, axes in enumerate(grid.flat):
        if place >= len(outcomes):
            axes.set_axis_off()
            continue
        outcome = outcomes[place]
        for side, points in outcome.curves.items():
            marker, fill = _MARKS[side]
            style: Mapping[str, Any] = {"color": "black", "linestyle": _LINES[side], "linewidth": 1}
            steps = [point["step"] for point in points]
            axes.plot(
                steps,
                [point["told"] for point in points],
                marker=marker,
                markerfacecolor=fill,
                markersize=4,
                label=side,
                **style,
            )
            if side == ERASED and all("control" in point for point in points):
                axes.plot(
                    steps,
                    [point["control"] for point in points],
                    "x",
                    color="black",
                    markersize=4,
                    label="control of the erased",
                )
        axes.set_title(outcome.label, fontsize=7)
        axes.set_xlabel(axis, fontsize=7)
        axes.tick_params(labelsize=7)
    grid[0][0].set_ylabel(what, fontsize=7)
    grid[0][0].legend(frameon=False, fontsize=6, loc="center right")
    page.savefig(path, dpi=150)
