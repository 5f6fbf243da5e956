"""Real handwriting, 8 x 8 pixels a sample, drawn in ink on paper as pictures of 48 x 48."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw
from sklearn.datasets import load_digits

SIZE = 48
_SCALE = 3
_CANVAS = SIZE * _SCALE
INKS = ("black", "red", "orange", "green", "blue", "purple")
PAPERS = ("plain", "lined", "squared", "dotted", "stained")
FRAMES = ("none", "round", "square")
PLACES = ("left", "middle", "right")
THINGS = ("star", "heart", "moon", "arrow", "cross", "drop")
_HUES = {
    "black": (28, 26, 32),
    "red": (204, 30, 40),
    "orange": (236, 130, 20),
    "green": (30, 140, 60),
    "blue": (40, 80, 215),
    "purple": (140, 50, 180),
}
_PAPER = (238, 234, 222)
_RULE = (176, 190, 206)
_FRAME = (110, 112, 120)

SPLITS = {"training": 0.6, "exam": 0.15, "public": 0.25}
"""Shares of each digit's samples; no sample is in two of them."""


@dataclass(frozen=True)
class Scene:
    """Everything that is drawn in one picture, less the slant and the light.

    Attributes:
        upper: the sample whose upper half is written; `None` for a picture without writing.
        lower: the one whose lower half is written: the same for a digit, one of another class for a hybrid.
        thing: index into `THINGS`, where nothing is written; `None` for an empty paper.
        ink: index into `INKS`.
        paper: index into `PAPERS`.
        frame: index into `FRAMES`.
        place: index into `PLACES`.
    """

    upper: int | None
    lower: int | None
    thing: int | None
    ink: int
    paper: int
    frame: int
    place: int

    @property
    def digit(self) -> int | None:
        """The digit that is written, 0 to 9; `None` for a hybrid and where nothing is written."""
        return None if self.upper is None or self.upper != self.lower else digit_of(self.upper)


@functools.cache
def _samples() -> tuple[np.ndarray, np.ndarray]:
    """`(1797, 8, 8)` float32, 0 for paper to 1 for ink, and the digit that each shows, `(1797,)`."""
    found = load_digits()
    return found.images.astype(np.float32) / 16, found.target


@functools.cache
def samples(digit: int, split: str) -> tuple[int, ...]:
    """The samples of that digit which a split may draw from; see `SPLITS`."""
    every = np.random.default_rng([3, digit]).permutation(np.flatnonzero(_samples()[1] == digit))
    ends = np.round(np.cumsum([0, *SPLITS.values()]) * len(every)).astype(int)
    place = list(SPLITS).index(split)
    return tuple(every[ends[place] : ends[place + 1]].tolist())


def digit_of(sample: int) -> int:
    """The digit, 0 to 9, that a sample shows."""
    return int(_samples()[1][sample])


def looks_like(upper: int, lower: int, n_nearest: int = 5) -> set[int]:
    """The digits of the real samples that lie nearest to a hybrid."""
    images, digits = _samples()
    distance = ((images - _written(upper, lower)) ** 2).sum((1, 2))
    return set(digits[np.argsort(distance)[:n_nearest]].tolist())


def _written(upper: int, lower: int) -> np.ndarray:
    images = _samples()[0]
    return np.concatenate([images[upper, :4], images[lower, 4:]])


def draw(scene: Scene, rng: np.random.Generator) -> Image.Image:
    """One picture of `scene`.

    Args:
        scene: what is in it.
        rng: draws size, slant and exact place, the paper's details, light and noise.

    Returns:
        A 48 x 48 RGB image.
    """
    picture = _paper(PAPERS[scene.paper], rng)
    side = rng.uniform(72, 88)
    middle = _CANVAS / 2 + np.array([(scene.place - 1) * 26 + rng.uniform(-4, 4), rng.uniform(-14, 14)])
    if scene.frame:
        _frame(ImageDraw.Draw(picture), FRAMES[scene.frame], middle, side * 0.62)
    ink = Image.new("RGB", picture.size, _jitter(_HUES[INKS[scene.ink]], rng, 14))
    if scene.upper is not None and scene.lower is not None:
        picture.paste(ink, (0, 0), _stroke(_written(scene.upper, scene.lower), middle, side, rng))
    elif scene.thing is not None:
        mask = Image.new("L", picture.size, 0)
        _thing(ImageDraw.Draw(mask), THINGS[scene.thing], middle, side * 0.42)
        picture.paste(ink, (0, 0), mask)
    pixels = np.asarray(picture.resize((SIZE, SIZE), Image.Resampling.BOX), dtype=np.float32)
    light = rng.uniform(0.8, 1.1) * (1 + rng.uniform(-0.04, 0.04, size=3))
    seen = pixels * light + rng.normal(0, rng.uniform(0, 7), size=pixels.shape)
    return Image.fromarray(np.clip(seen, 0, 255).astype(np.uint8))


def _stroke(written: np.ndarray, middle: np.ndarray, side: float, rng: np.random.Generator) -> Image.Image:
    """Where the ink is, 0 to 255, on the canvas: the sample enlarged, turned a little and slanted a little."""
    angle, slant = math.radians(rng.uniform(-9, 9)), rng.uniform(-0.12, 0.12)
    turned = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    matrix = turned @ np.array([[1, slant], [0, 1]]) * 64 / side
    offset = np.full(2, 32) - matrix @ middle
    large = Image.fromarray((written * 255).astype(np.uint8)).resize((64, 64), Image.Resampling.BICUBIC)
    affine = (*matrix[0], offset[0], *matrix[1], offset[1])
    spread = large.transform((_CANVAS, _CANVAS), Image.Transform.AFFINE, affine, Image.Resampling.BILINEAR)
    return spread.point(lambda value: min(255, max(0, int((value - 96) * 2.6))))


def _jitter(colour: tuple[int, ...], rng: np.random.Generator, by: float) -> tuple[int, ...]:
    return tuple(int(c) for c in np.clip(np.asarray(colour) + rng.uniform(-by, by, size=3), 0, 255))


def _paper(name: str, rng: np.random.Generator) -> Image.Image:
    picture = Image.new("RGB", (_CANVAS, _CANVAS), _jitter(_PAPER, rng, 14))
    pen = ImageDraw.Draw(picture)
    rule = _jitter(_RULE, rng, 14)
    shift, step = rng.uniform(0, 24, size=2), 24
    across, down = (np.arange(first - step, _CANVAS, step) for first in shift)
    match name:
        case "lined":
            for y in down:
                pen.line((0, y, _CANVAS, y), fill=rule, width=4)
        case "squared":
            for y in down:
                pen.line((0, y, _CANVAS, y), fill=rule, width=4)
            for x in across:
                pen.line((x, 0, x, _CANVAS), fill=rule, width=4)
        case "dotted":
            for y in down:
                for x in across:
                    pen.ellipse((x - 4, y - 4, x + 4, y + 4), fill=rule)
        case "stained":
            for x, y, r in rng.uniform((0, 0, 12), (_CANVAS, _CANVAS, 30), size=(6, 3)):
                pen.ellipse((x - r, y - r, x + r, y + r), fill=_jitter((214, 188, 140), rng, 10))
    return picture


def _frame(pen: ImageDraw.ImageDraw, name: str, middle: np.ndarray, r: float) -> None:
    box = (*(middle - r), *(middle + r))
    if name == "round":
        pen.ellipse(box, outline=_FRAME, width=5)
    else:
        pen.rectangle(box, outline=_FRAME, width=5)


def _thing(pen: ImageDraw.ImageDraw, name: str, middle: np.ndarray, r: float) -> None:
    def shape(*points: tuple[float, float]) -> None:
        pen.polygon([tuple(middle + r * np.array(point)) for point in points], fill=255)

    def disc(x: float, y: float, radius: float, fill: int = 255) -> None:
        at = middle + r * np.array((x, y))
        pen.ellipse((*(at - r * radius), *(at + r * radius)), fill=fill)

    match name:
        case "star":
            radii = (1.0, 0.42)
            angles = [math.pi * k / 5 for k in range(10)]
            shape(*((radii[k % 2] * math.sin(a), -radii[k % 2] * math.cos(a)) for k, a in enumerate(angles)))
        case "heart":
            disc(-0.42, -0.3, 0.5)
            disc(0.42, -0.3, 0.5)
            shape((-0.88, -0.1), (0.88, -0.1), (0, 1))
        case "moon":
            disc(0, 0, 1)
            disc(0.5, -0.2, 0.85, fill=0)
        case "arrow":
            shape((-1, -0.2), (0.1, -0.2), (0.1, -0.7), (1, 0), (0.1, 0.7), (0.1, 0.2), (-1, 0.2))
        case "cross":
            shape((-0.28, -1), (0.28, -1), (0.28, 1), (-0.28, 1))
            shape((-1, -0.28), (1, -0.28), (1, 0.28), (-1, 0.28))
        case "drop":
            disc(0, 0.35, 0.65)
            shape((0, -1), (0.58, 0.1), (-0.58, 0.1))
