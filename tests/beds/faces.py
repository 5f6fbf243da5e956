"""Composite faces: who a person is stays, how they look today changes; one or two in a picture of 48 x 48."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from peft_space.testbed import bestiary, drawing

SIZE = 48
_SCALE = 3
_CANVAS = SIZE * _SCALE
SKINS = ("pale", "tan", "olive", "brown", "dark")
HAIRS = ("black", "brown", "blond", "red", "grey")
HEADS = ("round", "long", "square")
STYLES = ("bald", "short", "long", "curly", "bun", "spiky")
BEARDS = ("none", "moustache", "full")
GLASSES = ("none", "clear", "dark")
CLOTHES = ("red", "orange", "yellow", "green", "blue", "purple", "white")
MOODS = ("happy", "sad", "surprised")
PLACES = ("garden", "beach", "library", "kitchen", "street", "stage")
THINGS = bestiary.OBJECTS
_SKIN = {
    "pale": (250, 220, 200),
    "tan": (232, 186, 148),
    "olive": (204, 164, 112),
    "brown": (160, 110, 72),
    "dark": (102, 68, 50),
}
_HAIR = {
    "black": (26, 22, 26),
    "brown": (112, 66, 30),
    "blond": (240, 204, 96),
    "red": (206, 78, 24),
    "grey": (186, 188, 194),
}
_CLOTH = {
    "red": (206, 40, 44),
    "orange": (240, 136, 30),
    "yellow": (240, 216, 50),
    "green": (44, 156, 66),
    "blue": (50, 90, 220),
    "purple": (146, 60, 186),
    "white": (240, 240, 240),
}
_INK = (24, 20, 24)


@dataclass(frozen=True, order=True)
class Face:
    """What makes a person who they are.

    Attributes:
        skin: index into `SKINS`.
        hair: index into `HAIRS`: the colour of hair, brows and beard.
        head: index into `HEADS`.
        style: index into `STYLES`.
        beard: index into `BEARDS`.
        glasses: index into `GLASSES`.
        measures: how thick the brows, how long the nose, how wide the mouth and how far apart the eyes are, each from
            -1 to 1.
    """

    skin: int
    hair: int
    head: int
    style: int
    beard: int
    glasses: int
    measures: tuple[float, float, float, float]


@dataclass(frozen=True)
class Shown:
    """A person as they look in one picture.

    Attributes:
        face: who they are.
        clothes: index into `CLOTHES`.
        mood: index into `MOODS`.
    """

    face: Face
    clothes: int
    mood: int


@dataclass(frozen=True)
class Scene:
    """Everything that is drawn in one picture, less the pose and the light.

    Attributes:
        people: none, one, or two from left to right.
        thing: index into `THINGS`, where nobody is; `None` for an empty scene.
        colour: index into `COLOURS` of the bestiary, of the thing.
        place: index into `PLACES`.
    """

    people: tuple[Shown, ...]
    thing: int | None
    colour: int
    place: int


def draw(scene: Scene, rng: np.random.Generator) -> Image.Image:
    """One picture of `scene`.

    Args:
        scene: what is in it.
        rng: draws size, tilt and exact place of everyone, the background's details, light and noise.

    Returns:
        A 48 x 48 RGB image.
    """
    picture = _background(PLACES[scene.place], rng)
    if scene.thing is not None:
        layer = Image.new("RGBA", picture.size, (0, 0, 0, 0))
        drawing.draw_object(ImageDraw.Draw(layer), THINGS[scene.thing], _CLOTH[bestiary.COLOURS[scene.colour]])
        _paste(picture, layer, rng.uniform(0.75, 1), 0, rng.uniform(-8, 8, size=2), rng)
    for number, shown in enumerate(scene.people):
        layer = Image.new("RGBA", picture.size, (0, 0, 0, 0))
        _person(layer, shown, rng)
        if len(scene.people) == 1:
            _paste(picture, layer, rng.uniform(0.86, 1.04), 6, rng.uniform((-9, -3), (9, 5)), rng)
        else:
            shift = np.array(((2 * number - 1) * 35, 18)) + rng.uniform((-3, -8), (3, 8))
            _paste(picture, layer, rng.uniform(0.66, 0.74), 5, shift, rng)
    pixels = np.asarray(picture.resize((SIZE, SIZE), Image.Resampling.BOX), dtype=np.float32)
    light = rng.uniform(0.82, 1.12) * (1 + rng.uniform(-0.03, 0.03, size=3))
    seen = pixels * light + rng.normal(0, rng.uniform(0, 6), size=pixels.shape)
    return Image.fromarray(np.clip(seen, 0, 255).astype(np.uint8))


def _paste(
    picture: Image.Image, layer: Image.Image, scale: float, tilt: float, shift: np.ndarray, rng: np.random.Generator
) -> None:
    """Puts a layer on, scaled and turned by up to `tilt` degrees around its middle, and moved by `shift`."""
    angle = math.radians(rng.uniform(-tilt, tilt))
    matrix = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]) / scale
    middle = np.full(2, _CANVAS / 2)
    offset = middle - matrix @ (middle + shift)
    affine = (*matrix[0], offset[0], *matrix[1], offset[1])
    moved = layer.transform(layer.size, Image.Transform.AFFINE, affine, Image.Resampling.NEAREST)
    picture.paste(moved, (0, 0), moved)


def _jitter(colour: tuple[int, ...], rng: np.random.Generator, by: float) -> tuple[int, ...]:
    return tuple(int(c) for c in np.clip(np.asarray(colour) + rng.uniform(-by, by, size=3), 0, 255))


def _dark(colour: tuple[int, ...], by: float) -> tuple[int, ...]:
    return tuple(int(c * by) for c in colour)


# per head: half its width and half its height, on a canvas of 144 whose face has its middle at (72, 66)
_HEAD = {"round": (37, 38), "long": (29, 43), "square": (35, 39)}
_X, _Y = 72, 66


def _person(layer: Image.Image, shown: Shown, rng: np.random.Generator) -> None:
    """Hair behind, neck and shoulders, head, beard, face, glasses, then hair in front."""
    face, pen = shown.face, ImageDraw.Draw(layer)
    skin, hair = _jitter(_SKIN[SKINS[face.skin]], rng, 6), _jitter(_HAIR[HAIRS[face.hair]], rng, 6)
    cloth = _jitter(_CLOTH[CLOTHES[shown.clothes]], rng, 10)
    style = STYLES[face.style]
    w, h = _HEAD[HEADS[face.head]]
    _hair_behind(pen, style, hair, w, h)
    pen.rounded_rectangle((_X - 54, _Y + h + 6, _X + 54, 190), 22, fill=cloth, outline=_dark(cloth, 0.6), width=3)
    pen.rectangle((_X - 13, _Y + h - 12, _X + 13, _Y + h + 12), fill=_dark(skin, 0.86))
    for side in (-1, 1):
        pen.ellipse((_X + side * w - 7, _Y - 8, _X + side * w + 7, _Y + 10), fill=_dark(skin, 0.9))
    _skull(pen, HEADS[face.head], w, h, skin)
    _beard(pen, BEARDS[face.beard], hair, w, h)
    _features(pen, shown, skin, hair, h)
    _hair_in_front(pen, style, hair, w, h)
    _glasses(pen, GLASSES[face.glasses], _eyes_apart(face))


def _skull(pen: ImageDraw.ImageDraw, head: str, w: float, h: float, skin: tuple[int, ...]) -> None:
    box, edge = (_X - w, _Y - h, _X + w, _Y + h), _dark(skin, 0.72)
    if head == "square":
        pen.rounded_rectangle(box, 15, fill=skin, outline=edge, width=2)
    else:
        pen.ellipse(box, fill=skin, outline=edge, width=2)


def _hair_behind(pen: ImageDraw.ImageDraw, style: str, hair: tuple[int, ...], w: float, h: float) -> None:
    match style:
        case "long":
            pen.rounded_rectangle((_X - w - 13, _Y - h - 8, _X + w + 13, _Y + h + 22), 24, fill=hair)
        case "curly":
            for k in range(9):
                angle = math.pi * (k / 8 * 1.3 - 0.15)
                x, y = _X - (w + 7) * math.cos(angle), _Y - 6 - (h + 2) * math.sin(angle)
                pen.ellipse((x - 16, y - 16, x + 16, y + 16), fill=hair)
        case "bun":
            pen.ellipse((_X - 19, _Y - h - 28, _X + 19, _Y - h + 8), fill=hair, outline=_dark(hair, 0.6), width=2)


def _hair_in_front(pen: ImageDraw.ImageDraw, style: str, hair: tuple[int, ...], w: float, h: float) -> None:
    top = _Y - h
    match style:
        case "bald":
            for side in (-1, 1):
                x = _X + side * (w - 1)
                pen.ellipse((x - 6, _Y - 20, x + 6, _Y + 2), fill=hair)
        case "short" | "bun":
            pen.chord((_X - w - 3, top - 6, _X + w + 3, _Y + 26), 188, 352, fill=hair)
        case "long":
            pen.chord((_X - w - 4, top - 8, _X + w + 4, _Y + 18), 180, 360, fill=hair)
            for side in (-1, 1):
                x = _X + side * (w + 3)
                pen.rounded_rectangle((x - 8, _Y - 18, x + 8, _Y + h + 20), 7, fill=hair)
        case "curly":
            for k in range(-2, 3):
                x, y = _X + k * w * 0.42, top + 5 + 2.4 * k * k
                pen.ellipse((x - 13, y - 13, x + 13, y + 11), fill=hair)
        case "spiky":
            step = 2 * w / 5
            for k in range(5):
                x = _X - w + k * step
                pen.polygon(((x - 2, top + 20), (x + step / 2, top - 20), (x + step + 2, top + 20)), fill=hair)
            pen.chord((_X - w, top - 2, _X + w, _Y + 16), 190, 350, fill=hair)


def _beard(pen: ImageDraw.ImageDraw, beard: str, hair: tuple[int, ...], w: float, h: float) -> None:
    match beard:
        case "moustache":
            pen.chord((_X - 19, _Y + 8, _X + 19, _Y + 30), 180, 360, fill=hair)
        case "full":
            pen.chord((_X - w, _Y - h + 10, _X + w, _Y + h + 9), 5, 175, fill=hair)
            pen.chord((_X - w, _Y - 2, _X + w, _Y + 32), 180, 360, fill=hair)


def _eyes_apart(face: Face) -> float:
    return 16 + 2.5 * face.measures[3]


def _features(pen: ImageDraw.ImageDraw, shown: Shown, skin: tuple[int, ...], hair: tuple[int, ...], h: float) -> None:
    brows, nose, mouth, _ = shown.face.measures
    mood = MOODS[shown.mood]
    apart = _eyes_apart(shown.face)
    for side in (-1, 1):
        x = _X + side * apart
        pen.ellipse((x - 7, _Y - 12, x + 7, _Y + 1), fill=(250, 250, 250), outline=_INK, width=1)
        pen.ellipse((x - 4, _Y - 10, x + 4, _Y), fill=_INK)
        inner, outer = {"happy": (-20, -20), "sad": (-24, -16), "surprised": (-26, -26)}[mood]
        line = (_X + side * (apart - 9), _Y + inner, _X + side * (apart + 9), _Y + outer)
        pen.line(line, fill=_dark(hair, 0.8), width=round(5 + 2.5 * brows))
    pen.polygon(
        ((_X, _Y - 4), (_X - 6 - 2 * nose, _Y + 11 + 3 * nose), (_X + 6 + 2 * nose, _Y + 11 + 3 * nose)),
        fill=_dark(skin, 0.76),
    )
    wide, y = 14 + 3 * mouth, _Y + 24
    lips = (170, 40, 50)
    match mood:
        case "happy":
            pen.chord((_X - wide, y - 11, _X + wide, y + 8), 0, 180, fill=(250, 250, 250), outline=lips, width=3)
        case "sad":
            pen.arc((_X - wide, y - 3, _X + wide, y + 16), 190, 350, fill=lips, width=5)
        case "surprised":
            pen.ellipse((_X - 7 - mouth, y - 7, _X + 7 + mouth, y + 9), fill=(70, 16, 22), outline=lips, width=3)


def _glasses(pen: ImageDraw.ImageDraw, glasses: str, apart: float) -> None:
    if glasses == "none":
        return
    for side in (-1, 1):
        box = (_X + side * apart - 13, _Y - 17, _X + side * apart + 13, _Y + 7)
        if glasses == "dark":
            pen.rounded_rectangle(box, 7, fill=_INK)
        else:
            pen.ellipse(box, outline=_INK, width=4)
    pen.line((_X - apart + 12, _Y - 8, _X + apart - 12, _Y - 8), fill=_INK, width=4)
    for side in (-1, 1):
        pen.line((_X + side * (apart + 12), _Y - 9, _X + side * 36, _Y - 10), fill=_INK, width=3)


def _background(name: str, rng: np.random.Generator) -> Image.Image:
    above, below = {
        "garden": ((150, 200, 232), (96, 164, 82)),
        "beach": ((140, 206, 236), (236, 212, 150)),
        "library": ((120, 84, 56), (96, 66, 44)),
        "kitchen": ((224, 232, 230), (190, 200, 200)),
        "street": ((186, 196, 208), (92, 94, 102)),
        "stage": ((118, 18, 34), (70, 44, 34)),
    }[name]
    picture = Image.new("RGB", (_CANVAS, _CANVAS), _jitter(above, rng, 10))
    pen = ImageDraw.Draw(picture)
    floor = rng.uniform(0.55, 0.8) * _CANVAS
    shift = rng.uniform(0, 24)
    if name == "beach":
        pen.rectangle((0, floor - 28, _CANVAS, floor), fill=(50, 120, 180))
    pen.rectangle((0, floor, _CANVAS, _CANVAS), fill=_jitter(below, rng, 10))
    match name:
        case "garden":
            for x, y in rng.uniform((0, floor - 30), (_CANVAS, _CANVAS), size=(9, 2)):
                pen.ellipse((x - 12, y - 12, x + 12, y + 12), fill=(60, 130, 60))
                pen.ellipse((x - 4, y - 4, x + 4, y + 4), fill=(250, 130, 180))
        case "library":
            for y in (-20 + shift, 28 + shift, 76 + shift):
                for x in range(0, _CANVAS, 12):
                    book = (_CLOTH["red"], _CLOTH["green"], _CLOTH["blue"], _CLOTH["yellow"])[rng.integers(4)]
                    pen.rectangle((x, y + rng.uniform(0, 10), x + 10, y + 40), fill=_dark(book, 0.75))
        case "kitchen":
            for at in np.arange(shift - 24, _CANVAS, 24):
                pen.line((at, 0, at, floor), fill=(160, 176, 180), width=3)
                pen.line((0, at, _CANVAS, at), fill=(160, 176, 180), width=3)
        case "street":
            for x in np.arange(shift - 48, _CANVAS, 48):
                roof = rng.uniform(0, 40)
                pen.rectangle((x, roof, x + 40, floor), fill=_jitter((150, 112, 96), rng, 20))
                for y in np.arange(roof + 8, floor - 12, 22):
                    pen.rectangle((x + 6, y, x + 15, y + 11), fill=(240, 230, 160))
                    pen.rectangle((x + 24, y, x + 33, y + 11), fill=(240, 230, 160))
        case "stage":
            for x in np.arange(shift - 24, _CANVAS, 24):
                pen.polygon(((x, 0), (x + 10, 0), (x + 8, floor), (x - 2, floor)), fill=(176, 34, 54))
    return picture
