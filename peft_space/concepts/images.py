"""The public images to stand on: wherever they come from, a list of pictures with an id each."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

_ENDINGS = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}


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

    images: tuple[Image.Image, ...]
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


def load_public_images(
    source: Any, *, limit: int | None = None, image_column: str = "image", split: str = "train"
) -> PublicImages:
    """Reads the public images.

    Args:
        source: a `PublicImages`, a sequence of PIL images, a folder (searched recursively), a `datasets.Dataset` or
            `IterableDataset` with an image column, or the id of a data set on the Hub.
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
    images: list[Image.Image] = []
    ids: list[str] = []
    skipped: list[tuple[str, str]] = []
    for name, entry in islice(_entries(source, image_column, split), limit):
        try:
            images.append(_upright(entry))
            ids.append(name)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            skipped.append((name, f"{type(error).__name__}: {error}"))
    if not images:
        first = f" The first of {len(skipped)} that could not be read: {': '.join(skipped[0])}." if skipped else ""
        raise ValueError(
            f"`public_images` must hold at least one readable picture; got none from {_named(source)}.{first} "
            "Give a list of PIL images, a folder, a data set with an image column or a Hub data-set id."
        )
    from_hub = isinstance(source, str) and not Path(source).expanduser().is_dir()
    where = {"dataset": source, "split": split} if from_hub else {}
    return PublicImages(tuple(images), tuple(ids), tuple(skipped), **where)


def _named(source: Any) -> str:
    return repr(str(source)) if isinstance(source, (str, Path)) else f"a {type(source).__name__}"


def _entries(source: Any, column: str, split: str) -> Iterator[tuple[str, Any]]:
    if isinstance(source, (str, Path)):
        folder = Path(source).expanduser()
        if folder.is_dir():
            for path in sorted(folder.rglob("*")):
                if path.suffix.lower() in _ENDINGS:
                    yield str(path.relative_to(folder)), path
            return
        if isinstance(source, Path) or folder.is_absolute() or str(source).count("/") != 1:
            raise ValueError(
                "`public_images` must be a folder that exists or a Hub data-set id 'owner/name'; "
                f"got {_named(source)}."
            )
        source = _from_hub(source, split)
    columns = getattr(source, "column_names", None)
    if columns is not None and column not in columns:
        raise ValueError(f"`image_column` must be a column of the data set, {columns}; got {column!r}.")
    if not isinstance(source, Iterable):
        raise TypeError(
            "`public_images` must be a list of PIL images, a folder, a data set or a Hub data-set id; "
            f"got {_named(source)}."
        )
    for index, row in enumerate(_undecoded(source, column)):
        if isinstance(row, dict) and column not in row:
            raise ValueError(f"`image_column` must be a column of the data set, {list(row)}; got {column!r}.")
        yield str(index), row[column] if isinstance(row, dict) else row


def _from_hub(name: str, split: str) -> Any:
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise ImportError(
            f"`public_images` (={name!r}) is no folder, and a data set of the Hub needs `datasets`. "
            "Install it with `pip install 'peft-space[data]'`."
        ) from error
    try:
        return load_dataset(name, split=split, streaming=True)
    except Exception as error:  # offline, unknown, private, no such split: each comes as another library's exception
        raise ValueError(
            f"`public_images` must be a folder that exists or a Hub data-set id that can be loaded; got {name!r}. "
            f"{type(error).__name__}: {error}"
        ) from error


def _undecoded(source: Iterable[Any], column: str) -> Iterable[Any]:
    """A data set whose pictures are still files, so that one that cannot be read does not end the reading."""
    feature = (getattr(source, "features", None) or {}).get(column)
    if feature is None or type(feature).__name__ != "Image" or not hasattr(source, "cast_column"):
        return source
    return source.cast_column(column, type(feature)(decode=False))


def _upright(entry: Any) -> Image.Image:
    if isinstance(entry, Path):
        with Image.open(entry) as image:
            return ImageOps.exif_transpose(image).convert("RGB")
    if isinstance(entry, dict):
        from datasets import Image as ImageFeature

        entry = ImageFeature().decode_example(entry)
    if isinstance(entry, Image.Image):
        return ImageOps.exif_transpose(entry).convert("RGB")
    raise ValueError(f"not a picture but a {type(entry).__name__}")


def content_key(image: Image.Image) -> str:
    """A hash of a picture's pixels: equal for copies, whatever their names."""
    return hashlib.sha256(f"{image.size}".encode() + image.tobytes()).hexdigest()
