"""A public set of another kind than any bed's pictures: photographs, textures, objects and letters."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from sklearn.datasets import load_sample_images

from peft_space import PublicImages
from peft_space.testbed import bestiary, drawing

SIZE = 48
# no digit, and no letter that may pass for one
GLYPHS = "AEFHKMNRTVWXYaefhkmnrtvwxy@&%#?+=*"


def public_images(n_images: int = 2000, seed: int = 0) -> PublicImages:
    """About a quarter each of photographs, textures, objects and glyphs: no face, no digit, no creature.

    Returns:
        Pictures of 48 x 48, and ids that say of which of the four each is.
    """
    rng = np.random.default_rng([12, seed])
    kinds = list(_DRAWN)
    picked = [kinds[k] for k in rng.integers(len(kinds), size=n_images)]
    return PublicImages(
        tuple(_DRAWN[kind](rng) for kind in picked),
        tuple(f"{number:04d}-{kind}" for number, kind in enumerate(picked)),
    )


@functools.cache
def _photographs() -> tuple[Image.Image, ...]:
    """A Chinese temple and a dahlia, 640 x 427, which ship with scikit-learn."""
    return tuple(map(Image.fromarray, load_sample_images().images))


def photograph(rng: np.random.Generator) -> Image.Image:
    """A square part of a photograph, mirrored or not."""
    photographs = _photographs()
    whole = photographs[rng.integers(len(photographs))]
    side = int(rng.integers(SIZE, min(whole.size)))
    left, top = (int(rng.integers(length - side + 1)) for length in whole.size)
    part = whole.crop((left, top, left + side, top + side)).resize((SIZE, SIZE), Image.Resampling.BOX)
    return part.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else part


def texture(rng: np.random.Generator) -> Image.Image:
    """Waves, checks or clouds between two colours."""
    y, x = np.mgrid[:SIZE, :SIZE] / SIZE
    angle, pitch, phase = rng.uniform(0, np.pi), rng.uniform(2, 9), rng.uniform(0, 2 * np.pi)
    along = np.cos(angle) * x + np.sin(angle) * y
    across = -np.sin(angle) * x + np.cos(angle) * y
    match rng.integers(3):
        case 0:
            mix = 0.5 + 0.5 * np.sin(2 * np.pi * pitch * along + phase)
        case 1:
            mix = ((np.floor(pitch * along) + np.floor(pitch * across)) % 2).astype(float)
        case _:
            coarse = Image.fromarray((rng.random((7, 7)) * 255).astype(np.uint8))
            mix = np.asarray(coarse.resize((SIZE, SIZE), Image.Resampling.BICUBIC)) / 255.0
    first, second = rng.uniform(0, 255, size=(2, 3))
    return _noisy(first + (second - first) * mix[..., None], rng)


def thing(rng: np.random.Generator) -> Image.Image:
    """An object of the bestiary's in one of its scenes."""
    return drawing.draw(bestiary.random_scene(rng, thing=int(rng.integers(len(bestiary.OBJECTS)))), rng)


def glyph(rng: np.random.Generator) -> Image.Image:
    """One letter or sign, printed."""
    paper, ink = rng.uniform((150, 0), (255, 110), size=(3, 2)).T
    picture = Image.new("RGB", (SIZE, SIZE), tuple(int(c) for c in paper))
    at = tuple((SIZE / 2 + rng.uniform(-6, 6, size=2)).tolist())
    font = ImageFont.load_default(size=float(rng.uniform(22, 40)))
    text = GLYPHS[rng.integers(len(GLYPHS))]
    ImageDraw.Draw(picture).text(at, text, font=font, fill=tuple(int(c) for c in ink), anchor="mm")
    return _noisy(np.asarray(picture, dtype=float), rng)


def _noisy(pixels: np.ndarray, rng: np.random.Generator) -> Image.Image:
    seen = pixels + rng.normal(0, rng.uniform(0, 8), size=pixels.shape)
    return Image.fromarray(np.clip(seen, 0, 255).astype(np.uint8))


_DRAWN: dict[str, Callable[[np.random.Generator], Image.Image]] = {
    "photograph": photograph,
    "texture": texture,
    "object": thing,
    "glyph": glyph,
}
