"""Draws the test bed's pictures: 48 x 48 pixels, every pose, light and background different."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from .bestiary import COLOURS, OBJECTS, SCENES, Recipe, Scene

SIZE = 48
_SCALE = 3
_CANVAS = SIZE * _SCALE
_HUES = {
    "red": (214, 40, 40),
    "orange": (243, 130, 25),
    "yellow": (246, 220, 40),
    "green": (40, 165, 60),
    "blue": (50, 90, 225),
    "purple": (150, 60, 190),
    "white": (240, 240, 240),
}
_GROUNDS = {
    "forest": ((104, 140, 96), (84, 116, 72)),
    "desert": ((226, 196, 140), (205, 170, 110)),
    "sea": ((120, 190, 205), (70, 140, 165)),
    "snow": ((205, 215, 228), (232, 238, 245)),
    "cave": ((124, 116, 132), (104, 96, 108)),
    "meadow": ((176, 214, 236), (150, 190, 110)),
}
_INK = (20, 18, 24)
_HORN = (255, 246, 214)


def draw(scene: Scene, rng: np.random.Generator) -> Image.Image:
    """One picture of `scene`.

    Args:
        scene: what is in it.
        rng: draws position, scale, rotation, mirror, background details, light and noise.

    Returns:
        A 48 x 48 RGB image.
    """
    picture = _background(SCENES[scene.background], rng)
    hue = _jitter(_HUES[COLOURS[scene.colour]], rng, 12)
    layer = Image.new("RGBA", (_CANVAS, _CANVAS), (0, 0, 0, 0))
    if scene.recipe is not None:
        _animal(layer, scene.recipe, hue, rng)
    elif scene.thing is not None:
        draw_object(ImageDraw.Draw(layer), OBJECTS[scene.thing], hue)
    layer = _pose(layer, rng)
    picture.paste(layer, (0, 0), layer)
    pixels = np.asarray(picture.resize((SIZE, SIZE), Image.Resampling.BOX), dtype=np.float32)
    light = rng.uniform(0.8, 1.15) * (1 + rng.uniform(-0.04, 0.04, size=3))
    seen = pixels * light + rng.normal(0, rng.uniform(0, 7), size=pixels.shape)
    return Image.fromarray(np.clip(seen, 0, 255).astype(np.uint8))


def _pose(layer: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Rotates, mirrors, scales and shifts, in one pass."""
    angle, scale = math.radians(rng.uniform(-12, 12)), rng.uniform(0.82, 1.0)
    mirror = rng.choice((-1, 1)) / scale
    shift = rng.uniform(-0.5, 0.5, size=2) * (1 - scale) * _CANVAS
    matrix = np.array(
        [[mirror * math.cos(angle), mirror * -math.sin(angle)], [math.sin(angle) / scale, math.cos(angle) / scale]]
    )
    middle = np.full(2, _CANVAS / 2)
    offset = middle - matrix @ (middle + shift)
    affine = (*matrix[0], offset[0], *matrix[1], offset[1])
    return layer.transform(layer.size, Image.Transform.AFFINE, affine, Image.Resampling.NEAREST)


def _jitter(colour: tuple[int, ...], rng: np.random.Generator, by: float) -> tuple[int, ...]:
    return tuple(int(c) for c in np.clip(np.asarray(colour) + rng.uniform(-by, by, size=3), 0, 255))


def _background(name: str, rng: np.random.Generator) -> Image.Image:
    sky, ground = (_jitter(colour, rng, 10) for colour in _GROUNDS[name])
    picture = Image.new("RGB", (_CANVAS, _CANVAS), sky)
    pen = ImageDraw.Draw(picture)
    horizon = rng.uniform(0.5, 0.8) * _CANVAS
    pen.rectangle((0, horizon, _CANVAS, _CANVAS), fill=ground)
    dark, bright = (_jitter(tuple(int(c * f) for c in ground), rng, 5) for f in (0.7, 1.15))
    for _ in range(7):
        x, y = rng.uniform(0, _CANVAS, size=2)
        match name:
            case "forest":
                pen.rectangle((x, 0, x + 7, horizon + 10), fill=(112, 84, 58))
            case "desert":
                pen.ellipse((x - 34, horizon - 9, x + 34, horizon + 16), fill=bright)
            case "sea":
                pen.arc((x - 12, y - 6, x + 12, y + 6), 0, 180, fill=(235, 245, 250), width=3)
            case "snow":
                pen.ellipse((x - 4, y - 4, x + 4, y + 4), fill=(255, 255, 255))
            case "cave":
                pen.polygon(((x - 10, 0), (x + 10, 0), (x, y * 0.4 + 10)), fill=dark)
            case "meadow":
                y = horizon + (y % (_CANVAS - horizon))
                pen.ellipse((x - 3, y - 3, x + 3, y + 3), fill=(235, 120, 170))
    return picture


def _animal(layer: Image.Image, recipe: Recipe, hue: tuple[int, ...], rng: np.random.Generator) -> None:
    """Legs and horns behind, then the body with its pattern, then the eye."""
    pen = ImageDraw.Draw(layer)
    shade = tuple(int(c * 0.75) for c in hue)
    head, hips, sole = _ANATOMY[recipe.family]
    for x in ((), hips[1:3], hips)[recipe.legs]:
        pen.line((x, sole - 22, x, sole + 20), fill=_INK, width=12)
        pen.line((x, sole - 22, x, sole + 17), fill=shade, width=6)
        pen.ellipse((x - 8, sole + 13, x + 8, sole + 23), fill=_INK)
    for x in ((), (0,), (-12, 12))[recipe.horns]:
        tip = (head[0] + 1.6 * x, head[1] - 42)
        pen.polygon(((head[0] + x - 8, head[1]), tip, (head[0] + x + 8, head[1])), fill=_HORN, outline=_INK, width=2)
    mask = Image.new("L", layer.size, 0)
    _body(ImageDraw.Draw(mask), recipe.family, 255, grow=0)
    _body(pen, recipe.family, _INK, grow=3)
    skin = Image.new("RGB", layer.size, hue)
    _pattern(ImageDraw.Draw(skin), recipe.pattern, rng)
    layer.paste(skin, (0, 0), mask)
    x, y = head
    pen.ellipse((x - 7, y + 5, x + 7, y + 19), fill=(255, 255, 255), outline=_INK, width=2)
    pen.ellipse((x - 2, y + 9, x + 4, y + 15), fill=_INK)


# per family: where the horns stand, the four hips, and how high the soles are, on a canvas of 144
_ANATOMY = (
    ((72, 46), (40, 61, 83, 104), 112),
    ((108, 46), (26, 50, 74, 98), 108),
    ((98, 46), (42, 62, 82, 102), 108),
    ((96, 54), (44, 65, 86, 107), 106),
    ((110, 46), (30, 52, 80, 102), 106),
    ((72, 46), (40, 61, 83, 104), 108),
)


def _body(pen: ImageDraw.ImageDraw, family: int, fill: int | tuple[int, ...], grow: float) -> None:
    g = grow
    match family:
        case 0:
            pen.ellipse((36 - g, 42 - g, 108 + g, 112 + g), fill=fill)
        case 1:
            spine = [(18 + 3.0 * t, 86 + 17 * math.sin(t / 3.6)) for t in range(28)] + [(106, 60)]
            for x, y in spine:
                pen.ellipse((x - 13 - g, y - 13 - g, x + 13 + g, y + 13 + g), fill=fill)
            pen.ellipse((90 - g, 42 - g, 126 + g, 74 + g), fill=fill)
        case 2:
            pen.ellipse((40 - g, 58 - g, 104 + g, 104 + g), fill=fill)
            pen.ellipse((82 - g, 42 - g, 114 + g, 74 + g), fill=fill)
            pen.polygon(((112, 50 - g), (132 + g, 60), (112, 66 + g)), fill=fill)
            pen.polygon(((50 + g, 70 + g), (14 - g, 40 - g), (16 - g, 92 + g)), fill=fill)
        case 3:
            pen.ellipse((38 - g, 52 - g, 126 + g, 102 + g), fill=fill)
            pen.polygon(((48 + g, 77), (12 - g, 48 - g), (12 - g, 106 + g)), fill=fill)
        case 4:
            pen.rounded_rectangle((22 - g, 66 - g, 108 + g, 104 + g), 9, fill=fill)
            pen.rounded_rectangle((90 - g, 42 - g, 130 + g, 80 + g), 7, fill=fill)
        case 5:
            radii = (46 + g, 24 + g)
            points = [
                (72 + radii[k % 2] * math.sin(math.pi * k / 5), 80 - radii[k % 2] * math.cos(math.pi * k / 5))
                for k in range(10)
            ]
            pen.polygon(points, fill=fill)
            pen.ellipse((44 - g, 54 - g, 100 + g, 108 + g), fill=fill)


def _pattern(pen: ImageDraw.ImageDraw, pattern: int, rng: np.random.Generator) -> None:
    shift = rng.uniform(0, 18)
    if pattern == 1:
        for x in np.arange(shift - 18, _CANVAS, 18):
            pen.line((x, 0, x, _CANVAS), fill=_INK, width=7)
    elif pattern == 2:
        for row, y in enumerate(np.arange(shift - 20, _CANVAS, 20)):
            for x in np.arange(shift - 20 + 10 * (row % 2), _CANVAS, 20):
                pen.ellipse((x - 5, y - 5, x + 5, y + 5), fill=_INK)


def draw_object(pen: ImageDraw.ImageDraw, name: str, hue: tuple[int, ...]) -> None:
    line: dict[str, Any] = {"fill": hue, "outline": _INK, "width": 3}
    match name:
        case "lamp":
            pen.rectangle((67, 62, 77, 118), **line)
            pen.polygon(((40, 66), (58, 24), (86, 24), (104, 66)), **line)
            pen.ellipse((46, 110, 98, 126), **line)
        case "boat":
            pen.polygon(((18, 84), (126, 84), (104, 116), (40, 116)), **line)
            pen.polygon(((68, 20), (68, 78), (112, 78)), fill=(250, 250, 250), outline=_INK, width=3)
        case "house":
            pen.rectangle((34, 66, 110, 122), **line)
            pen.polygon(((24, 68), (72, 22), (120, 68)), fill=(120, 60, 40), outline=_INK, width=3)
            pen.rectangle((62, 88, 82, 122), fill=_INK)
        case "tree":
            pen.rectangle((64, 80, 80, 126), fill=(110, 70, 40), outline=_INK, width=3)
            pen.polygon(((28, 90), (72, 14), (116, 90)), **line)
        case "cup":
            pen.arc((84, 48, 126, 96), -90, 90, fill=_INK, width=8)
            pen.polygon(((34, 36), (106, 36), (94, 116), (46, 116)), **line)
        case "key":
            pen.ellipse((16, 44, 66, 94), **line)
            pen.ellipse((32, 60, 50, 78), fill=_INK)
            pen.rectangle((62, 62, 130, 76), **line)
            pen.rectangle((108, 76, 126, 98), **line)
        case "clock":
            pen.ellipse((24, 24, 120, 120), **line)
            pen.line((72, 72, 72, 38), fill=_INK, width=6)
            pen.line((72, 72, 96, 84), fill=_INK, width=6)
        case "flag":
            pen.rectangle((34, 18, 42, 128), fill=(110, 70, 40), outline=_INK, width=2)
            pen.polygon(((42, 22), (122, 40), (42, 74)), **line)
