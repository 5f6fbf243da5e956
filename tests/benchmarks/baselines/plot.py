"""The Pareto plot: forgetting against what stayed of names near and far."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from peft_space.evaluation.intervals import Estimate

from .contenders import Contender
from .front import FAR, NEAR, Rows, estimate, on_front, points
from .show import COLUMNS

MARKERS = "*osD^v<>phXPd8"
"""Of the contenders, SPACE's first; the oracle has a cross."""
TICKS = (0, 0.01, 0.03, 0.1, 0.3, 1)


def draw(by_method: Mapping[str, Rows], contenders: Mapping[str, Contender], path: Path) -> None:
    """Better is to the upper right; methods are told apart by marker and filling alone, so print needs no colour.

    Both axes show what is missing, on a scale that is logarithmic but near 0, where most methods lie. SPACE and what
    does not compete (the oracle) are black, methods that see target images hollow, source-free ones grey.
    """
    from matplotlib import pyplot

    markers = dict(zip(contenders, MARKERS, strict=False))
    figure, panels = pyplot.subplots(1, 2, figsize=(9.5, 4.6), layout="constrained")
    for axes, mark in zip(panels, (NEAR, FAR), strict=True):
        for name, rows in by_method.items():
            forgotten, kept = estimate(rows, "forget"), estimate(rows, mark)
            lost = Estimate(1 - kept.value, 1 - kept.high, 1 - kept.low)
            axes.errorbar(
                forgotten.value,
                lost.value,
                xerr=_reach(forgotten),
                yerr=_reach(lost),
                marker=markers.get(name, "+"),
                markersize=13 if name == "SPACE" else 8,
                markerfacecolor=_filling(name, contenders),
                color="black",
                linestyle="none",
                elinewidth=0.6,
                label=name,
            )
        competing = points({name: rows for name, rows in by_method.items() if name in contenders}, mark)
        if competing:
            line = sorted((x, 1 - y) for x, y in (competing[name] for name in on_front(competing)))
            axes.plot(*zip(*line, strict=True), color="black", linestyle="--", linewidth=0.8, zorder=0)
        axes.set_xscale("symlog", linthresh=0.01)
        axes.set_yscale("symlog", linthresh=0.01)
        axes.set_xticks(TICKS, [f"{tick:g}" for tick in TICKS])
        axes.set_yticks(TICKS, [f"{1 - tick:g}" for tick in TICKS])
        axes.minorticks_off()
        axes.set(xlim=(1.2, -0.002), ylim=(1.2, -0.002), xlabel="forget accuracy", ylabel=COLUMNS[mark])
        axes.grid(color="0.85", linewidth=0.5)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right upper", fontsize="small")
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def _filling(name: str, contenders: Mapping[str, Contender]) -> str:
    if name == "SPACE" or name not in contenders:
        return "black"
    return "white" if contenders[name].sees_target else "0.65"


def _reach(one: Estimate) -> list[list[float]]:
    # of a single creature there is no interval
    return [[max(0.0, one.value - one.low)], [max(0.0, one.high - one.value)]]
