"""The public images to stand on: a list of pictures with an id each, and how one picture is read."""

from __future__ import annotations

import hashlib
import io
import os
import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, overload

from PIL import Image, ImageOps

from .sources import Entry, ImageSource, TarMember, image_source, read_at_most

MAX_PIXELS = 2 * 89_478_485
"""A file that claims more pixels is refused as a decompression bomb before it is decoded; Pillow's own limit."""
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
"""What is decoded, whatever a file is called. Pillow knows more: for EPS it starts Ghostscript."""
ENOUGH_PIXELS = 2**22
"""A file with more pixels is reduced to these as it is read: no model is shown more, and hundreds are held at once."""


class Undecoded(Sequence[Image.Image]):
    """Pictures that are read anew whenever one is asked for, so that only their places are held.

    Args:
        entries: for each a file, an encoded picture or whatever else `read_picture` reads.
    """

    def __init__(self, entries: Sequence[Any]) -> None:
        self._entries = entries

    def __len__(self) -> int:
        return len(self._entries)

    @overload
    def __getitem__(self, place: int) -> Image.Image: ...

    @overload
    def __getitem__(self, place: slice) -> tuple[Image.Image, ...]: ...

    def __getitem__(self, place: int | slice) -> Image.Image | tuple[Image.Image, ...]:
        if isinstance(place, slice):
            return tuple(map(read_picture, self._entries[place]))
        return read_picture(self._entries[place])


@dataclass(frozen=True)
class PublicImages:
    """Pictures that may be used, none of which has to show the concept.

    Attributes:
        images: RGB pictures.
        ids: for each, where it came from: a file's path inside the folder, or its index in the data set.
        skipped: id and reason of every picture that could not be read.
        dataset: the id of the Hub data set they were taken from; `None` for pictures that others can't find there.
        split: its split.
    """

    images: Sequence[Image.Image]
    ids: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...] = field(default=())
    dataset: str | None = None
    split: str | None = None

    def __len__(self) -> int:
        return len(self.images)

    def take(self, indices: Sequence[int]) -> PublicImages:
        """The pictures at `indices`, in that order."""
        images, ids = tuple(self.images[i] for i in indices), tuple(self.ids[i] for i in indices)
        return PublicImages(images, ids, dataset=self.dataset, split=self.split)

    def source(self) -> ImageSource:
        """The same as a stream."""

        def at(place: int) -> Entry:
            return self.ids[place], self.images[place]

        def begin(start: int) -> Iterator[Entry]:
            return map(at, range(start, len(self)))

        return ImageSource("a PublicImages", begin, None, len(self), None, at, self.dataset, self.split)


def load_public_images(
    source: Any, *, limit: int | None = None, image_column: str = "image", split: str = "train"
) -> PublicImages:
    """Reads the public images into memory. For more than fit there, see `index_images`.

    Args:
        source: a `PublicImages`, or as for `concepts.image_source`.
        limit: read at most so many.
        image_column: the column of a data set that holds the pictures.
        split: the split of a Hub data set.

    Returns:
        The readable pictures as RGB, upright by their EXIF orientation, and what was skipped and why.

    Raises:
        ValueError: no picture could be read, the column is missing, or no folder or data set has that name.
        TypeError: `source` is none of the above.
        ImportError: `source` is a data-set id and `datasets` is not installed.
    """
    if isinstance(source, PublicImages):
        return source if limit is None else source.take(range(min(limit, len(source))))
    found = image_source(source, limit=limit, image_column=image_column, split=split)
    images: list[Image.Image] = []
    ids: list[str] = []
    skipped: list[tuple[str, str]] = []
    for name, entry in found.entries():
        try:
            images.append(read_picture(entry))
            ids.append(name)
        except Exception as error:  # what a broken file raises is up to a dozen decoders
            skipped.append((name, why_unreadable(error)))
    if not images:
        raise nothing_readable(found.name, skipped)
    return PublicImages(tuple(images), tuple(ids), tuple(skipped), found.dataset, found.split)


def nothing_readable(source: str, skipped: Sequence[tuple[str, str]]) -> ValueError:
    """The error for a source without a picture."""
    first = f" The first of {len(skipped)} that could not be read: {': '.join(skipped[0])}." if skipped else ""
    return ValueError(
        f"`public_images` must hold at least one readable picture; got none from {source}.{first} "
        "Give a list of PIL images, a folder, a data set with an image column or a Hub data-set id."
    )


def why_unreadable(error: Exception) -> str:
    """The reason to be told, without paths of this machine and addresses in its memory."""
    said = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return f"{type(error).__name__}: {re.sub(r'<_io.BytesIO.*?>', 'it', said)}"


def encoded(entry: Any) -> bytes | None:
    """The file behind an entry of a source; `None` where it is a picture already, or what only `datasets` can read.

    Raises:
        OSError: the file is gone or cannot be read.
        ValueError: it has more than `MOST_BYTES`.
    """
    if isinstance(entry, Path):
        status = os.stat(entry)
        if not stat.S_ISREG(status.st_mode):
            raise OSError("no regular file")
        with open(entry, "rb") as file:
            return read_at_most(file, status.st_size)
    if isinstance(entry, TarMember):
        return entry.read()
    return entry.get("bytes") if isinstance(entry, dict) else entry if isinstance(entry, bytes) else None


def read_picture(entry: Any) -> Image.Image:
    """The picture as RGB and upright by its EXIF orientation; of an animation the first frame.

    Files of more than `ENOUGH_PIXELS` are reduced to these.

    Args:
        entry: a file, its bytes, a PIL image or what an undecoded image column holds.

    Raises:
        ValueError: it is none of these, or claims more than `MAX_PIXELS`.
        Exception: whatever a decoder raises on a broken file.
    """
    if isinstance(entry, Exception):
        raise entry
    data = encoded(entry)
    if data is not None:
        return _decoded(data)
    if isinstance(entry, dict):
        return _decoded(_named(entry))
    if isinstance(entry, Image.Image):
        return ImageOps.exif_transpose(entry).convert("RGB")
    raise ValueError(f"not a picture but a {type(entry).__name__}")


def _named(entry: dict[str, Any]) -> bytes:
    """The file that a row of a data set names, on this machine or wherever `fsspec` finds it."""
    import fsspec

    if not isinstance(entry.get("path"), str):
        raise ValueError("a row without a picture")
    with fsspec.open(entry["path"], "rb") as file:
        return read_at_most(file)


def _decoded(data: bytes) -> Image.Image:
    Image.init()
    # an older Pillow, or one built without a library, may lack some
    with Image.open(io.BytesIO(data), formats=[name for name in FORMATS if name in Image.OPEN]) as image:
        return _from_file(image)


def _from_file(image: Image.Image) -> Image.Image:
    pixels = image.width * image.height
    if pixels > MAX_PIXELS:
        # Pillow's own check can be switched off for a whole process
        raise ValueError(f"a decompression bomb of {image.width} x {image.height} pixels")
    if pixels > ENOUGH_PIXELS:
        # a JPEG is decoded at a half, a quarter or an eighth of its size where that is enough
        image.draft("RGB", _reduced(image.size))
    upright = ImageOps.exif_transpose(image).convert("RGB")
    if upright.width * upright.height > ENOUGH_PIXELS:
        upright.thumbnail(_reduced(upright.size))
    return upright


def _reduced(size: tuple[int, int]) -> tuple[int, int]:
    shrink = (ENOUGH_PIXELS / (size[0] * size[1])) ** 0.5
    return max(1, int(size[0] * shrink)), max(1, int(size[1] * shrink))


def content_key(image: Image.Image) -> str:
    """A hash of a picture's pixels: equal for copies, whatever their names."""
    return hashlib.sha256(f"{image.size}".encode() + image.tobytes()).hexdigest()
