"""Attacks by picture: the same thing cropped, mirrored, blurred, compressed or cut into patches (image rephrase)."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from PIL import Image, ImageFilter, ImageOps

from .aims import Aims, Shown

Change = Callable[[Image.Image, np.random.Generator], Image.Image]
CROP, BLUR, QUALITY, GRID = 0.75, 0.02, 30, 4
"""Share of each side that a crop keeps; radius of the blur over the shorter side; JPEG quality; patches a side."""


def crop(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A random window of `CROP` of each side, at the former size."""
    width, height = (max(1, round(CROP * side)) for side in image.size)
    left = int(rng.integers(image.width - width + 1))
    top = int(rng.integers(image.height - height + 1))
    return image.crop((left, top, left + width, top + height)).resize(image.size, Image.Resampling.BICUBIC)


def flip(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Mirrored from left to right."""
    return ImageOps.mirror(image)


def blur(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Gaussian blur."""
    return image.filter(ImageFilter.GaussianBlur(BLUR * min(image.size)))


def jpeg(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """What a strong compression leaves."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=QUALITY)
    with Image.open(file) as read:
        return read.convert("RGB")


def shuffle_patches(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """`GRID` by `GRID` patches in another order; what is left over at the edges stays."""
    width, height = image.width // GRID, image.height // GRID
    if not width or not height:
        return image
    corners = [(x * width, y * height) for y in range(GRID) for x in range(GRID)]
    shuffled = image.copy()
    for (x, y), place in zip(corners, rng.permutation(len(corners)), strict=True):
        left, top = corners[place]
        shuffled.paste(image.crop((left, top, left + width, top + height)), (x, y))
    return shuffled


CHANGES: dict[str, tuple[str, Change]] = {
    "crop": ("cropped to three quarters of each side", crop),
    "flip": ("mirrored", flip),
    "blur": ("blurred", blur),
    "jpeg": ("compressed (JPEG, quality 30)", jpeg),
    "patches": ("cut into 16 patches, shuffled", shuffle_patches),
}
"""By key: its name for a reader, and what is done."""


def changed(aims: Aims, change: Change, seed: int) -> Aims:
    """The aims with every picture changed alike."""
    rng = np.random.default_rng([seed, 15])

    def each(pictures: Sequence[Shown]) -> list[Shown]:
        return [replace(shown, image=change(shown.image, rng)) for shown in pictures]

    return aims.with_pictures(each(aims.target), each(aims.control))
