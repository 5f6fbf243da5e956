"""What is known of an erasure, as HTML: answers, anchors, plots and the report.

Nothing of it is a file: pictures and plots are data URLs. Whatever an adapter, a model or a visitor wrote is escaped.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from ..console import facts_rows
from ..evaluation.intervals import Estimate
from ..evaluation.report import Collateral
from ..hub.content import SHEET_FILE, is_local
from .workbench import EVALUATION_FILE, Erasure

_PANELS: Any = (
    Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    .get_template("panels.html.jinja")
    .module
)
# as `Anchors.contact_sheet` draws it
_SIDE, _CAPTION, _COLUMNS = 96, 14, 12
_MARKERS = "osD^vPX*<>"


def answers(before: str, after: str, label: str, strength: float) -> str:
    """Both answers side by side, and in words whether they differ."""
    return str(_PANELS.answers(before, after, label, f"{strength:.2f}"))


def trouble(what: str) -> str:
    """Why there is no answer."""
    return str(_PANELS.trouble(what))


def anchors(erasure: Erasure) -> str:
    """The anchors as a gallery, likeliest first, each with its scores."""
    told = erasure.report.get("anchor_images") or {}
    images = told.get("images", [])
    sheet = erasure.folder / SHEET_FILE
    pictures: list[str] = []
    whole = ""
    if sheet.is_file():
        with Image.open(sheet) as image:
            tiles = cut(image.convert("RGB"), _per_concept(erasure.report))
            if len(tiles) == len(images):
                pictures = [_jpeg(tile) for tile in tiles]
            else:
                whole = _jpeg(image.convert("RGB"))
    return str(_PANELS.anchors(told.get("dataset"), images, pictures, whole))


def cut(sheet: Image.Image, counts: list[int]) -> list[Image.Image]:
    """The pictures of a contact sheet, without their captions.

    Args:
        sheet: as `ErasureResult.contact_sheet` draws it: the anchors of each concept below those of the one before.
        counts: how many anchors each concept has.

    Returns:
        The pictures, or none where the sheet has another size than so many anchors would have.
    """
    rows = [-(-count // _COLUMNS) for count in counts]
    if sheet.size != (_COLUMNS * _SIDE, sum(rows) * (_SIDE + _CAPTION)):
        return []
    tiles, top = [], 0
    for count, height in zip(counts, rows, strict=True):
        for place in range(count):
            x, y = place % _COLUMNS * _SIDE, (top + place // _COLUMNS) * (_SIDE + _CAPTION)
            tiles.append(sheet.crop((x + 2, y + 2, x + _SIDE - 2, y + _SIDE - 2)))
        top += height
    return tiles


def collateral(erasure: Erasure, measures: bool = False) -> str:
    """The collateral curve with its table, or how to come by one.

    Args:
        measures: whether the page can measure it.
    """
    told = erasure.evaluation.get("collateral")
    if not told:
        why = (erasure.evaluation.get("unknown") or {}).get("collateral")
        return str(_PANELS.absent("collateral curve", why, measures, _command(erasure)))
    curve = Collateral.of(told)
    return str(_PANELS.collateral(curve, _plot(curve.figure())))


def leak(erasure: Erasure, measures: bool = False) -> str:
    """The leak of each layer with its table, or how to come by it."""
    if not erasure.leaks:
        return str(_PANELS.absent("leak of each layer", None, measures, _command(erasure)))
    rows = by_layer(erasure.leaks)
    return str(_PANELS.leak(rows, _plot(leak_figure(rows)), max(erasure.leaks.values())))


def report(erasure: Erasure) -> str:
    """Everything that was written down, as tables. Of a folder of this machine only the name is shown."""
    measured = [
        figure | {key: figure[key] and Estimate.of(figure[key]).told() for key in ("base", "erased")}
        for figure in (erasure.evaluation.get("figures") or {}).values()
    ]
    base = erasure.facts["base"]
    facts = {**erasure.facts, "base": Path(base).name if base and is_local(base) else base}
    return str(_PANELS.report(facts_rows(facts), facts, measured, erasure.evaluation.get("unknown") or {}))


def by_layer(leaks: Mapping[str, float]) -> dict[str, dict[int, float]]:
    """The leak by kind of module, and there by layer: `{"q_proj": {0: 0.01, ...}, ...}`.

    The layer is the first number in a module's path; where there is none it is 0.
    """
    rows: dict[str, dict[int, float]] = {}
    for name, value in leaks.items():
        number = re.search(r"\.(\d+)\.", name)
        rows.setdefault(name.rsplit(".", 1)[-1], {})[int(number[1]) if number else 0] = value
    return rows


def leak_figure(rows: Mapping[str, Mapping[int, float]]) -> Figure:
    """The leak over the layers, one marker for each kind of module. Legible in black and white."""
    canvas = Figure(figsize=(6, 3.6), layout="constrained")
    axes = canvas.subplots()
    for number, (kind, layers) in enumerate(rows.items()):
        marker, fill = _MARKERS[number % len(_MARKERS)], "black" if number % 2 else "white"
        axes.plot(
            list(layers), list(layers.values()), marker=marker, color="black", markerfacecolor=fill, lw=0.6, label=kind
        )
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("layer")
    axes.set_ylabel("leak on retained inputs")
    canvas.legend(loc="outside right upper", frameon=False)
    return canvas


def _command(erasure: Erasure) -> str:
    """What makes the evaluation that the page looks for, as far as it is known here."""
    name, base = next(iter(erasure.facts["concept"]), "NAME"), erasure.facts["base"]
    base = "BASE" if base is None or is_local(base) else base
    return (
        f'peft-space evaluate --model {base} --adapter {erasure.source} --concept "{name}" '
        f"--public-images FOLDER --json {erasure.source}/{EVALUATION_FILE}"
    )


def _per_concept(told: Mapping[str, Any]) -> list[int]:
    """How many anchors each concept of a report has."""
    several = told.get("anchors") or []
    return [one["anchors"] for one in (several if isinstance(several, list) else [several])]


def _plot(figure: Figure) -> str:
    file = io.BytesIO()
    figure.savefig(file, format="svg")
    return f"data:image/svg+xml;base64,{base64.b64encode(file.getvalue()).decode()}"


def _jpeg(picture: Image.Image) -> str:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=88)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
