"""What is known of an erasure, as HTML: answers, anchors, plots and the report.

Nothing of it is a file: pictures and plots are data URLs. Whatever an adapter, a model or a visitor wrote is escaped.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader
from matplotlib.figure import Figure
from PIL import Image

from ..console import facts_rows
from ..evaluation.intervals import Estimate
from ..evaluation.report import Collateral
from ..figures import by_layer, leak_figure
from ..hub.content import SHEET_FILE, is_local
from .workbench import EVALUATION_FILE, Erasure

_PANELS: Any = (
    Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    .get_template("panels.html.jinja")
    .module
)
# as `Anchors.contact_sheet` draws it
_SIDE, _CAPTION, _COLUMNS = 96, 14, 12


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
