"""Where public images come from: a stream of entries that is not decoded, never held and can be started again."""

from __future__ import annotations

import hashlib
import os
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

ENDINGS = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
SHARDS = {".parquet", ".tar"}

MOST_BYTES = 2**28
"""A picture's file that has more bytes is refused."""

Entry = tuple[str, Any]
"""An id, and what `images.read_picture` makes a picture of; an exception where that cannot be had."""


def read_at_most(file: BinaryIO, size: int | None = None) -> bytes:
    """The next `size` bytes of a file, or all that are left.

    Raises:
        ValueError: they are more than `MOST_BYTES`, or `size` is below 0.
    """
    if size is not None and not 0 <= size <= MOST_BYTES:
        raise ValueError(f"a file of {size} bytes, of at most {MOST_BYTES}")
    data = file.read(MOST_BYTES + 1 if size is None else size)
    if len(data) > MOST_BYTES:
        raise ValueError(f"a file of more than {MOST_BYTES} bytes")
    return data


@dataclass(frozen=True)
class TarMember:
    """A file inside a shard of WebDataset."""

    path: Path
    offset: int
    size: int

    def read(self) -> bytes:
        """Its bytes."""
        with open(self.path, "rb") as file:
            file.seek(self.offset)
            return read_at_most(file, self.size)


@dataclass(frozen=True)
class ImageSource:
    """A source of public images.

    Attributes:
        name: what it is called in messages.
        begin: starts the stream of entries at a position.
        version: changes whenever the entries may have changed; `None` where only reading them all would tell.
        size: how many entries there are, if that is known.
        limit: most entries.
        at: the entry at a position, where that needs no reading of those before.
        dataset: id of the Hub data set that it is; `None` for what others can't find there.
        split: its split.
    """

    name: str
    begin: Callable[[int], Iterator[Entry]]
    version: str | None = None
    size: int | None = None
    limit: int | None = None
    at: Callable[[int], Entry] | None = None
    dataset: str | None = None
    split: str | None = None

    def entries(self, start: int = 0) -> Iterator[Entry]:
        """The entries from position `start` on."""
        return islice(self.begin(start), None if self.limit is None else max(0, self.limit - start))

    def pick(self, positions: Sequence[int]) -> list[Entry]:
        """The entries at some positions, in ascending order."""
        if self.at is not None:
            return [self.at(position) for position in positions]
        wanted = set(positions)
        upto = self.entries() if not wanted else islice(self.entries(), max(wanted) + 1)
        return [entry for position, entry in enumerate(upto) if position in wanted]


def image_source(
    source: Any, *, limit: int | None = None, image_column: str = "image", split: str = "train"
) -> ImageSource:
    """Finds out what kind of source it is.

    Args:
        source: a sequence of PIL images; a folder, searched recursively for pictures and for shards (`.parquet`, and
            `.tar` as WebDataset has it); one shard; a `datasets.Dataset` or `IterableDataset` with an image column; or
            the id of a data set on the Hub, which is streamed.
        limit: read at most so many entries.
        image_column: the column of a data set or parquet file that holds the pictures.
        split: the split of a Hub data set.

    Raises:
        ValueError: the column is missing, or no folder or data set has that name.
        TypeError: `source` is none of the above.
        ImportError: it needs `datasets`, which is not installed.
    """
    if isinstance(source, ImageSource):
        return source
    if isinstance(source, (str, Path)):
        path = Path(source).expanduser()
        if path.is_dir() or (path.is_file() and path.suffix.lower() in SHARDS):
            return _of_files(path, str(source), image_column, limit)
        if isinstance(source, Path) or path.is_absolute() or str(source).count("/") != 1:
            raise ValueError(
                "`public_images` must be a folder that exists or a Hub data-set id 'owner/name'; "
                f"got {_named(source)}."
            )
        rows = _of_rows(_from_hub(source, split), image_column, limit, within=source)
        version = _commit_of(source)
        return ImageSource(
            _named(source),
            rows.begin,
            None if version is None else _hash(source, version, split, image_column, limit),
            limit=limit,
            dataset=source,
            split=split,
        )
    if not isinstance(source, Iterable):
        raise TypeError(
            "`public_images` must be a list of PIL images, a folder, a data set or a Hub data-set id; "
            f"got {_named(source)}."
        )
    return _of_rows(source, image_column, limit)


def _named(source: Any) -> str:
    return repr(str(source)) if isinstance(source, (str, Path)) else f"a {type(source).__name__}"


def _hash(*parts: Any) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:24]


def _of_files(root: Path, name: str, column: str, limit: int | None) -> ImageSource:
    """A folder or one shard. Its version is told from names, sizes and times of change; no file is opened for it."""
    stamp, pictures, shards = hashlib.sha256(), 0, 0
    for path in _walk(root):
        # a link in a folder may lead nowhere; one that is the source itself stands for what it leads to
        status = os.stat(path, follow_symlinks=path == root)
        stamp.update(f"{path}\0{status.st_size}\0{status.st_mtime_ns}\n".encode(errors="surrogateescape"))
        is_shard = path.suffix.lower() in SHARDS
        pictures, shards = pictures + (not is_shard), shards + is_shard

    def begin(start: int) -> Iterator[Entry]:
        return islice(_in_files(root, column), start, None)

    return ImageSource(
        repr(name),
        begin,
        _hash(str(root.resolve()), stamp.hexdigest(), column, limit),
        None if shards else min(pictures, pictures if limit is None else limit),
        limit,
    )


def _walk(root: Path) -> Iterator[Path]:
    """Pictures and shards below a folder, in the order of their paths; links to nowhere included."""
    if root.is_file():
        yield root
        return
    with os.scandir(root) as found:
        inside = sorted(found, key=lambda entry: entry.name)
    for entry in inside:
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(root / entry.name)
        elif Path(entry.name).suffix.lower() in ENDINGS | SHARDS:
            yield root / entry.name


def _in_files(root: Path, column: str) -> Iterator[Entry]:
    for path in _walk(root):
        name = _written(str(path.relative_to(root if root.is_dir() else root.parent)))
        if path.suffix.lower() == ".tar":
            yield from _in_tar(path, name)
        elif path.suffix.lower() == ".parquet":
            yield from _in_parquet(path, name, column)
        else:
            yield name, path


def _in_tar(path: Path, name: str) -> Iterator[Entry]:
    """Every picture among the members; only their headers are read. A shard that breaks off ends there."""
    if not path.is_file():
        yield name, OSError("no regular file")
        return
    try:
        with tarfile.open(path, "r:") as shard:
            end = 0
            for member in shard:
                # a size below none would have the headers read over and over
                if shard.offset <= end:
                    raise tarfile.ReadError("a member ends before it begins")
                end = shard.offset
                shard.members.clear()  # type: ignore[attr-defined]
                if member.isfile() and Path(member.name).suffix.lower() in ENDINGS:
                    yield f"{name}/{_written(member.name)}", TarMember(path, member.offset_data, member.size)
    except Exception as error:  # what a broken header leads to is up to the reader of each kind of header
        yield name, error


def _in_parquet(path: Path, name: str, column: str) -> Iterator[Entry]:
    try:
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise ImportError(
            f"`public_images` holds {name!r}, and parquet files need `pyarrow`. "
            "Install it with `pip install 'peft-space[data]'`."
        ) from error
    if not path.is_file():
        yield name, OSError("no regular file")
        return
    try:
        file = ParquetFile(path)
        columns = file.schema_arrow.names
    except Exception as error:  # Arrow has an error of its own for each thing that may be wrong
        yield name, error
        return
    with file:
        if column not in columns:
            raise ValueError(f"`image_column` must be a column of the data set, {columns}; got {column!r}.")
        number = 0
        try:
            for batch in file.iter_batches(64, columns=[column]):
                for value in batch.column(0):
                    yield f"{name}/{number}", _embedded(value.as_py())
                    number += 1
        except Exception as error:  # as above
            yield f"{name}/{number}", error


def _embedded(value: Any) -> Any:
    """A cell of a shard: a picture that lies in it, and none that it names; a shard has no say over other files."""
    if isinstance(value, dict) and not isinstance(value.get("bytes"), bytes):
        return ValueError("no picture lies in the shard")
    return value


def _written(name: str) -> str:
    """A file's name as text; of bytes that are none, their numbers."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _of_rows(source: Any, column: str, limit: int | None, within: str | None = None) -> ImageSource:
    """A sequence of pictures, a data set, or anything that yields rows as often as it is asked.

    Args:
        within: the Hub data set whose rows these are: they may name no file but its own.
    """
    columns = getattr(source, "column_names", None)
    if columns is not None and column not in columns:
        raise ValueError(f"`image_column` must be a column of the data set, {columns}; got {column!r}.")
    # the pictures are still files then, so that one that cannot be read does not end the reading
    rows: Any = _undecoded(source, column)
    addressed = hasattr(rows, "__getitem__") and hasattr(rows, "__len__")
    fingerprint = getattr(rows, "_fingerprint", None)

    def cell(row: Any) -> Any:
        if isinstance(row, dict) and column not in row:
            raise ValueError(f"`image_column` must be a column of the data set, {list(row)}; got {column!r}.")
        value = row[column] if isinstance(row, dict) else row
        if within is not None and isinstance(value, dict) and not isinstance(value.get("bytes"), bytes):
            # "zip://a.png::hf://datasets/owner/name@commit/a.zip"
            place = str(value.get("path")).rpartition("::")[2]
            if not re.match(rf"hf://datasets/{re.escape(within)}[@/](?!.*\.\.)", place):
                return ValueError("no picture lies in the row, and it names none of the data set")
        return value

    def begin(start: int) -> Iterator[Entry]:
        later: Iterable[Any] = islice(rows, start, None)
        if start and hasattr(rows, "skip"):
            later = rows.skip(start)
        return ((str(start + number), cell(row)) for number, row in enumerate(later))

    return ImageSource(
        _named(source),
        begin,
        None if fingerprint is None else _hash(fingerprint, column, limit),
        min(len(rows), len(rows) if limit is None else limit) if addressed else None,
        limit,
        (lambda position: (str(position), cell(rows[position]))) if addressed else None,
    )


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


def _commit_of(dataset: str) -> str | None:
    """The commit that a Hub data set is at; `None` where the Hub cannot be asked."""
    from huggingface_hub import HfApi

    try:
        return HfApi().dataset_info(dataset, timeout=10).sha
    except Exception:  # offline, or not from the Hub at all: the entries will tell
        return None


def _undecoded(source: Iterable[Any], column: str) -> Iterable[Any]:
    feature = (getattr(source, "features", None) or {}).get(column)
    if feature is None or type(feature).__name__ != "Image" or not hasattr(source, "cast_column"):
        return source
    return source.cast_column(column, type(feature)(decode=False))
