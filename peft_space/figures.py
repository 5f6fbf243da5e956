"""What a saved erasure looks like: figures made of its report, legible in black and white. Loads no model."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from .adapter import whole_folder
from .canvas import canvas
from .hub import card, read_report

MARKERS = "osD^v<>phX*d"
_DASHES = ("-", "--", "-.", ":")


def plot_erasure(path: str | os.PathLike[str], output: str | os.PathLike[str], **hub_kwargs: Any) -> list[Path]:
    """Draws what the report of an erasure tells.

    - `scores.png`: the public images' projector cosines, the threshold, and the anchors.
    - `spectrum.png`: what the retained inputs' energy comes to in each layer, and the rank that is kept.
    - `training.png`: losses, gauges and leak by step.
    - `leak.png`: the leak of each layer.
    - `marks.png`: what was measured before and after, where the report holds it (`demo` measures).

    Args:
        path: folder or Hub id of an erasure adapter.
        output: folder for the figures; those of an earlier call are replaced, other files stay.
        **hub_kwargs: as for `load_erasure`.

    Returns:
        The figures that there is something to draw in.

    Raises:
        ValueError: there is no erasure adapter at `path`.
        ImportError: matplotlib is not installed.
        ConnectionError: the Hub can't be reached and the adapter is not in the cache.
    """
    _, report = read_report(path, **hub_kwargs)
    figures = {name: draw(report) for name, draw in FIGURES.items()}
    with whole_folder(output, overwrite=True) as draft:
        for name, figure in figures.items():
            if figure is not None:
                figure.savefig(draft / name, dpi=150)
    return [Path(output) / name for name, figure in figures.items() if figure is not None]


def scores(report: Mapping[str, Any]) -> Any:
    """How many public images have which projector cosine, with threshold and anchors; a panel for each concept."""
    several = report.get("anchors") or []
    several = [several] if isinstance(several, Mapping) else several
    if not several:
        return None
    figure = canvas(6, 2.6 * len(several))
    chosen = [row["cosine"] for row in (report.get("anchor_images") or {}).get("images", ())]
    for axes, anchors in zip(figure.subplots(len(several), squeeze=False)[:, 0], several, strict=True):
        edges, counts = anchors["histogram"]["edges"], anchors["histogram"]["counts"]
        axes.stairs(counts, edges, fill=True, facecolor="0.8", edgecolor="black", linewidth=0.8)
        axes.axvline(anchors["threshold"], color="black", linestyle="--", linewidth=1, label="threshold")
        if len(several) == 1:
            axes.plot(chosen, [-0.04 * max(counts)] * len(chosen), "|", color="black", label="anchors")
        axes.set(xlabel="projector cosine with the name", ylabel="public images", ylim=(-0.09 * max(counts), None))
        axes.legend(frameon=False)
    return figure


def spectrum(report: Mapping[str, Any]) -> Any:
    """The share of energy that the first directions leave, by distinct input, and where each is cut."""
    ranks, tails = report.get("kept_rank") or {}, report.get("spectrum") or {}
    tails = {key: tail for key, tail in tails.items() if any(share > 0 for _, share in tail)}
    if not tails:
        return None
    figure = canvas(9, 3.4)
    left, right = figure.subplots(1, 2)
    kinds = _kinds(tails)
    for kind, dash, marker in zip(kinds, _cycled(_DASHES, kinds), _cycled(MARKERS, kinds), strict=True):
        of_kind = {key: tail for key, tail in tails.items() if _place(key)[1] == kind}
        for tail in of_kind.values():
            held, outside = zip(*((rank, share) for rank, share in tail if share > 0), strict=True)
            left.plot(held, outside, color="black", linestyle=dash, linewidth=0.6, alpha=0.6)
        left.plot([], [], color="black", linestyle=dash, label=kind)
        points = sorted((_place(key)[0], ranks[key] / tail[-1][0]) for key, tail in of_kind.items() if key in ranks)
        places, shares = zip(*points, strict=True) if points else ((), ())
        right.plot(places, shares, marker, color="black", markerfacecolor="white", label=kind)
    left.set(xscale="log", yscale="log", xlabel="directions held", ylabel="share of retained energy outside")
    right.set(ylim=(0, 1), xlabel="layer", ylabel="rank kept, as a share of the width")
    for axes in (left, right):
        axes.legend(frameon=False, fontsize=7, title="inputs of", title_fontsize=7)
    return figure


def training(report: Mapping[str, Any]) -> Any:
    """The loss's terms as they were logged, each gauge's level, and the leak, by optimiser step."""
    losses, readings = report.get("losses") or [], report.get("readings") or []
    if not losses and not readings:
        return None
    figure = canvas(7, 7)
    terms, levels, leaks = figure.subplots(3, sharex=True)
    for name, dash in zip(("loss", "loss_task", "loss_orth", "loss_div"), _DASHES, strict=True):
        some = [(entry["step"], entry[name]) for entry in losses if entry.get(name) is not None]
        if some:
            terms.plot(*zip(*some, strict=True), dash, color="black", label=name)
    gauges = report.get("gauges") or []
    readings = [reading for reading in readings if len(reading["levels"]) == len(gauges)]
    steps = [reading["step"] for reading in readings]
    for place, (gauge, marker) in enumerate(zip(gauges, _cycled(MARKERS, gauges), strict=True)):
        fill = "black" if gauge["reference"] is None else "white"
        style = {"color": "black", "marker": marker, "markerfacecolor": fill, "markersize": 5}
        told = [reading["levels"][place] for reading in readings]
        levels.plot([0, *steps], [gauge["before"], *told], linewidth=0.8, label=gauge["about"], **style)
        if gauge["reference"] is not None:
            levels.axhline(gauge["reference"], color="0.6", linewidth=0.6, linestyle=":")
    leaks.plot(steps, [reading["leak"] for reading in readings], "o-", color="black", markersize=4)
    terms.set(ylabel="loss")
    levels.set(ylabel="gauges, nats\n(dotted: other names)")
    leaks.set(xlabel="optimiser steps", ylabel="leak", ylim=(0, None))
    for axes in (terms, levels):
        axes.legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def leak(report: Mapping[str, Any]) -> Any:
    """The leak of each layer, by its place in the model."""
    layers = (report.get("leak") or {}).get("per_module")
    return leak_figure(by_layer(layers)) if layers else None


def by_layer(leaks: Mapping[str, float]) -> dict[str, dict[int, float]]:
    """The leak by kind of module, and there by layer: `{"q_proj": {0: 0.01, ...}, ...}`."""
    rows: dict[str, dict[int, float]] = {}
    for name, share in leaks.items():
        layer, kind = _place(name)
        rows.setdefault(kind, {})[layer] = share
    return rows


def leak_figure(rows: Mapping[str, Mapping[int, float]]) -> Any:
    """The leak over the layers, one marker for each kind of module."""
    figure = canvas(6, 3.6)
    axes = figure.subplots()
    for number, ((kind, layers), marker) in enumerate(zip(rows.items(), _cycled(MARKERS, rows), strict=True)):
        axes.plot(
            list(layers),
            list(layers.values()),
            marker=marker,
            color="black",
            markerfacecolor="black" if number % 2 else "white",
            linewidth=0.6,
            label=kind,
        )
    axes.set(xlabel="layer", ylabel="leak on retained inputs", ylim=(0, None))
    axes.xaxis.get_major_locator().set_params(integer=True)
    figure.legend(loc="outside right upper", frameon=False)
    return figure


def before_and_after(report: Mapping[str, Any]) -> Any:
    """What was measured before and after, as bars."""
    rows = card.marks(report)
    if not rows:
        return None
    figure = canvas(7.5, 1 + 0.42 * len(rows))
    axes = figure.subplots()
    places = range(len(rows))
    for shift, when, fill in ((-0.2, "before", "white"), (0.2, "after", "0.4")):
        axes.barh(
            [place + shift for place in places],
            [row[when] for row in rows],
            height=0.36,
            facecolor=fill,
            edgecolor="black",
            linewidth=0.8,
            label=when,
        )
        for place, row in enumerate(rows):
            axes.text(row[when] + 0.01, place + shift, f"{row[when]:.2f}", va="center", fontsize=7)
    axes.set_yticks(places, [row["label"] for row in rows], fontsize=8)
    axes.invert_yaxis()
    axes.set(xlim=(0, 1.1), xlabel="share of answers")
    axes.legend(frameon=False, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2)
    return figure


FIGURES: dict[str, Callable[[Mapping[str, Any]], Any]] = {
    "scores.png": scores,
    "spectrum.png": spectrum,
    "training.png": training,
    "leak.png": leak,
    "marks.png": before_and_after,
}


def _place(name: str) -> tuple[int, str]:
    """The first number in a layer's path, 0 where there is none, and what the layer is called."""
    numbers = re.findall(r"\.(\d+)\.", name)
    return int(numbers[0]) if numbers else 0, name.rsplit(".", 1)[-1]


def _kinds(names: Mapping[str, Any]) -> list[str]:
    return list(dict.fromkeys(_place(name)[1] for name in names))


def _cycled(some: Sequence[str], like: Collection[Any]) -> list[str]:
    """As many of `some` as there are in `like`, over again where they are too few."""
    return [some[place % len(some)] for place in range(len(like))]
