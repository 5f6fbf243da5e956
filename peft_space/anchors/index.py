"""The projector features of any number of images, computed once and kept in files.

A cache is a folder. Below it there is one folder for each feature space (a base model with its image processor), and
in that one for each source of images, made of parts:

    part-00000000.safetensors   what was found of a fixed number of entries: features, hashes of the pictures, ids
    whole.safetensors           the mean of all features, and how far each lies from it; written when all parts are

Files are written beside and renamed, so each is there as a whole or not at all. A run that was stopped goes on after
the parts that are there, and without `whole.safetensors` nothing is taken for complete. A picture whose hash is known
in any source of the same feature space is not shown to the model again.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import uuid
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import chain, islice
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..concepts.images import PublicImages, encoded, nothing_readable, read_picture, why_unreadable
from ..concepts.sources import Entry, ImageSource, image_source
from ..processes import gathered, leads, place, together
from ..progress import advance
from ..tuner import base_fingerprint
from ..vlm import check_multimodal, evaluating, image_inputs, projected, tells_apart

PART = 2048
"""Entries of a part: at most so many are done again where a run was stopped."""
_THREADS = max(1, min(4, (os.cpu_count() or 2) - 1))
"""That read ahead; the tower needs a core of its own."""
_TOGETHER = 16
"""Entries that a thread reads in one go."""
_DIGEST = 16
"""Bytes of the hash of a picture."""
_WHOLE = "whole.safetensors"


_Read = tuple[bytes, Image.Image | None]


@dataclass(frozen=True)
class FeatureIndex:
    """The features of a source of images, on disk.

    Attributes:
        source: the pictures.
        folder: where the parts are.
        files: the parts, in the order of the source.
        computed: how many pictures the model was shown in this process; the features of all others were there.
        scratch: the temporary folder that goes when the index does; of several processes the first one has it.
    """

    source: ImageSource
    folder: Path
    files: tuple[Path, ...]
    computed: int = 0
    scratch: tempfile.TemporaryDirectory[str] | None = None

    def __len__(self) -> int:
        return self._starts[-1]

    @cached_property
    def _starts(self) -> list[int]:
        """Place of each part's first picture, and how many pictures there are."""
        with safe_open(self.folder / _WHOLE, framework="pt") as whole:
            return [0, *whole.get_tensor("rows").cumsum(0).tolist()]

    @cached_property
    def mean(self) -> Tensor:
        """The mean of all features, `(d,)` float32."""
        with safe_open(self.folder / _WHOLE, framework="pt") as whole:
            return whole.get_tensor("mean")

    @cached_property
    def skipped(self) -> tuple[tuple[str, str], ...]:
        """Id and reason of every entry that is no usable picture."""
        return tuple((name, why) for file in self.files for name, why in _told(file)["skipped"])

    def chunks(self) -> Iterator[tuple[int, Tensor, Tensor]]:
        """One part after another, mapped into memory and let go of again.

        Yields:
            The place of the first picture, features `(m, d)` float32 and their distances from the mean `(m,)` float32.
        """
        with safe_open(self.folder / _WHOLE, framework="pt") as whole:
            distances = whole.get_slice("distances")
            for start, stop, file in zip(self._starts, self._starts[1:], self.files, strict=False):
                if start < stop:
                    with safe_open(file, framework="pt") as part:
                        yield start, part.get_tensor("features"), distances[start:stop]

    def rows(self, places: Sequence[int]) -> Tensor:
        """Features `(len(places), d)` float32 of the pictures at `places`, in ascending order."""
        found = []
        for file, inside in self._by_file(places):
            with safe_open(file, framework="pt") as part:
                found.append(part.get_tensor("features")[inside])
        return torch.cat(found)

    def entries(self, places: Sequence[int]) -> list[Entry]:
        """Id and undecoded picture at each of `places`, in ascending order. Reads the source once more."""
        positions = []
        for file, inside in self._by_file(places):
            with safe_open(file, framework="pt") as part:
                positions += part.get_tensor("position")[inside].tolist()
        return self.source.pick(positions)

    def _by_file(self, places: Sequence[int]) -> Iterator[tuple[Path, Tensor]]:
        wanted = torch.tensor(places, dtype=torch.long)
        for start, stop, file in zip(self._starts, self._starts[1:], self.files, strict=False):
            inside = wanted[(wanted >= start) & (wanted < stop)] - start
            if len(inside):
                yield file, inside


@together()
def index_images(
    model: nn.Module,
    processor: Any,
    public_images: Any,
    cache: str | os.PathLike[str] | None = None,
    *,
    limit: int | None = None,
    image_column: str = "image",
    split: str = "train",
    batch_size: int = 64,
    part_size: int = PART,
) -> FeatureIndex:
    """Computes the projector features of a source of images, but for those that a cache has already.

    Nothing of the source is held but a few batches; threads read ahead. Started by `accelerate launch`, every process
    takes its share of the parts, and all return the same.

    Args:
        model: the vision-language model, before any erasure.
        processor: the model's own.
        public_images: as for `concepts.image_source`, or a `PublicImages`. What this function returned is handed back.
        cache: folder for the features; made if it is not there, and good for any number of models and sources.
            `None` keeps them in a temporary folder for as long as the result lives.
        limit: read at most so many entries.
        image_column: the column of a data set that holds the pictures.
        split: the split of a Hub data set.
        batch_size: pictures at a time.
        part_size: entries of each file of the cache.

    Returns:
        The index; features are float32, so that a search in it finds what a search without it would.

    Raises:
        ValueError: no picture can be read, the source can be read only once, the cache was made with other
            features than the model has, or an argument is out of range.
        TypeError: the model cannot be asked about images.
        OSError: the disk is full, for example; what was finished stays.
    """
    if isinstance(public_images, FeatureIndex):
        return public_images
    check_multimodal(model)
    if min(batch_size, part_size) < 1:
        raise ValueError(f"`batch_size` and `part_size` must be at least 1; got {batch_size} and {part_size}.")
    if isinstance(public_images, Iterator):
        raise ValueError(
            f"`public_images` must be a source that can be read more than once; got a {type(public_images).__name__}. "
            "Give a list, or `datasets.IterableDataset.from_generator`."
        )
    given = public_images.source() if isinstance(public_images, PublicImages) else public_images
    source = image_source(given, limit=limit, image_column=image_column, split=split)
    scratch = tempfile.TemporaryDirectory(prefix="peft-space-") if cache is None and leads() else None
    # without a cache all write into the folder of the first
    folder = cache if cache is not None else gathered(scratch.name if scratch is not None else "")[0]
    space = _feature_space(model, processor, Path(folder))
    with evaluating(model):
        writer = _Writer(model, processor, source, space, batch_size, part_size)
        files = writer.run(*place())
    gathered(None)
    if not all(file.exists() for file in files):
        raise ValueError(
            f"`cache` must be a folder that all processes reach; got {str(folder)!r}, where parts that others wrote "
            "are missing. Name one on a file system that the machines share."
        )
    if leads():
        _write_whole(writer.folder, files)
    gathered(None)
    index = FeatureIndex(source, writer.folder, tuple(files), writer.computed, scratch)
    if not len(index):
        raise nothing_readable(source.name, index.skipped)
    return index


def _feature_space(model: nn.Module, processor: Any, cache: Path) -> Path:
    """The cache's folder for this model and image processor.

    A fingerprint samples a few weights of the whole model. So that a projector that was tuned, or has an adapter, is
    told from the one it came from, the features of a made-up picture are kept beside and compared.
    """
    base = base_fingerprint(model)
    known = {
        "base": {"config": base["config"], "weights": base["weights"]},
        "processor": processor.image_processor.to_dict(),
    }
    key = hashlib.sha256(json.dumps(known, sort_keys=True, default=str).encode()).hexdigest()[:24]
    folder = cache / key
    ramp = torch.arange(64 * 64 * 3).reshape(64, 64, 3) * 7919 % 256
    with evaluating(model):
        probe = projected(model, image_inputs(processor, [Image.fromarray(ramp.byte().numpy())]))[0]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise ValueError(f"`cache` must be a folder; got the file {str(cache)!r}. Name another one.") from error
    about = folder / "probe.safetensors"
    if not about.exists():
        _save(about, {"features": probe})
    with safe_open(about, framework="pt") as file:
        there = file.get_tensor("features")
    if not torch.allclose(there, probe, rtol=0, atol=1e-2 * float(probe.abs().max())):
        raise ValueError(
            f"`cache` must hold features of this model; got {str(cache)!r}, where those of a test picture differ "
            f"by {float((there - probe).abs().max()):.3g}: its tower or projector was tuned, or has an adapter. "
            "Name another folder."
        )
    return folder


class _Writer:
    """Walks a source and writes the parts that are missing."""

    def __init__(
        self, model: nn.Module, processor: Any, source: ImageSource, space: Path, batch_size: int, part_size: int
    ) -> None:
        self.model, self.processor, self.source = model, processor, source
        self.most, self.part_size = batch_size, part_size
        # a stream that cannot tell whether it has changed is read again, and recognised by its beginning
        self.check = source.version is None and source.at is None
        version = source.version or _hash_of(source, part_size if self.check else None)
        self.folder = space / f"{version}-{part_size}"
        self.folder.mkdir(exist_ok=True)
        self.computed = 0

    def run(self, process: int, n_processes: int) -> list[Path]:
        """The parts, in order, once those are written that this process has to see to: every `n_processes`th."""
        files: list[Path] = []
        if not self.check:
            while (file := self._file(len(files))).exists():
                files.append(file)
                if _told(file)["end"]:
                    return files
        self.known = _Known(self.folder.parent)
        self.batch_size = self.most if tells_apart(self.model, self.processor) else 1
        entries = self.source.entries(len(files) * self.part_size)
        following = next(entries, None)
        with ThreadPoolExecutor(_THREADS) as threads:
            while True:
                file = self._file(len(files))
                begun = [] if following is None else [following]
                part = chain(begun, islice(entries, self.part_size - 1))
                if len(files) % n_processes == process and (self.check or not file.exists()):
                    found = self._found(threads, part, len(files) * self.part_size)
                    following = next(entries, None)
                    self._write(file, found, end=following is None)
                else:
                    deque(part, maxlen=0)
                    following = next(entries, None)
                files.append(file)
                if following is None:
                    return files

    def _file(self, number: int) -> Path:
        return self.folder / f"part-{number:08d}.safetensors"

    def _found(self, threads: ThreadPoolExecutor, part: Iterator[Entry], done: int) -> _Found:
        """Reads, prepares and encodes the entries of a part, the first two ahead of the third."""
        found = _Found()
        batch: list[tuple[int, Image.Image]] = []
        prepared: deque[tuple[list[int], Future[list[_Inputs | Exception]]]] = deque()

        def prepare() -> None:
            if batch:
                images = [image for _, image in batch]
                prepared.append(([row for row, _ in batch], threads.submit(_prepare, self.processor, images)))
                batch.clear()

        def encode() -> None:
            rows, inputs = prepared.popleft()
            for one in inputs.result():
                taken, rows = (rows[:1], rows[1:]) if isinstance(one, Exception) or one.alone else (rows, [])
                if isinstance(one, Exception):
                    found.drop(taken[0], why_unreadable(one))
                    continue
                self.computed += len(taken)
                for row, features in zip(taken, projected(self.model, one.inputs), strict=True):
                    found.features[row] = features

        for position, name, read in self._ahead(threads, part, done):
            advance("image features", position, max(self.source.size or 0, position))
            if isinstance(read, Exception):
                found.skipped.append((position, name, why_unreadable(read)))
                continue
            digest, image = read
            row = found.add(position, name, digest)
            if image is None:
                found.features[row] = self.known[digest]
                continue
            batch.append((row, image))
            if len(batch) == self.batch_size:
                prepare()
                if len(prepared) > 1:
                    encode()
        prepare()
        while prepared:
            encode()
        return found

    def _ahead(
        self, threads: ThreadPoolExecutor, part: Iterator[Entry], done: int
    ) -> Iterator[tuple[int, str, _Read | Exception]]:
        """Position, name and what was read of each entry; threads read some more."""
        window: deque[tuple[int, list[str], Future[list[_Read | Exception]]]] = deque()
        ahead = -(-self.batch_size // _TOGETHER) + _THREADS
        while some := list(islice(part, _TOGETHER)):
            read = threads.submit(_read_all, [entry for _, entry in some], self.known)
            window.append((done, [name for name, _ in some], read))
            done += len(some)
            if len(window) > ahead:
                yield from _told_of(*window.popleft())
        for some_read in window:
            yield from _told_of(*some_read)

    def _write(self, file: Path, found: _Found, end: bool) -> None:
        tensors = found.tensors(end)
        if file.exists():
            with safe_open(file, framework="pt") as there:
                if all(there.get_tensor(name).equal(tensors[name]) for name in ("content", "told")):
                    return
        # what was made of the former parts holds no longer
        (self.folder / _WHOLE).unlink(missing_ok=True)
        _save(file, tensors)


class _Found:
    """What was found in a part: for each readable picture a row."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, str, bytes]] = []
        self.features: dict[int, Tensor] = {}
        self.skipped: list[tuple[int, str, str]] = []

    def add(self, position: int, name: str, digest: bytes) -> int:
        self.rows.append((position, name, digest))
        return len(self.rows) - 1

    def drop(self, row: int, why: str) -> None:
        position, name, _ = self.rows[row]
        self.skipped.append((position, name, why))

    def tensors(self, end: bool) -> dict[str, Tensor]:
        for row, features in list(self.features.items()):
            if not features.isfinite().all():
                self.drop(row, "ValueError: the model's features of it are not finite")
                del self.features[row]
        kept = sorted(self.features)
        features = torch.stack([self.features[row] for row in kept]) if kept else torch.zeros(0, 0)
        told = {
            "end": end,
            "ids": [self.rows[row][1] for row in kept],
            "skipped": [(name, why) for _, name, why in sorted(self.skipped)],
        }
        digests = b"".join(self.rows[row][2] for row in kept)
        return {
            "features": features,
            "sum": features.sum(0, dtype=torch.float64),
            "content": torch.tensor(list(digests), dtype=torch.uint8).view(len(kept), _DIGEST),
            "position": torch.tensor([self.rows[row][0] for row in kept], dtype=torch.int64),
            "told": torch.tensor(list(json.dumps(told).encode()), dtype=torch.uint8),
        }


class _Known:
    """The features that a cache holds of pictures, whatever sources they came from, by the hash of the picture."""

    def __init__(self, space: Path) -> None:
        self._files = sorted(space.glob("*/part-*.safetensors"))
        self._places: dict[bytes, tuple[int, int]] = {}
        for number, file in enumerate(self._files):
            with safe_open(file, framework="pt") as part:
                content = part.get_tensor("content").numpy().tobytes()
            for row in range(len(content) // _DIGEST):
                self._places[content[row * _DIGEST : (row + 1) * _DIGEST]] = number, row
        self._open = lru_cache(4)(self._features)

    def __contains__(self, digest: bytes) -> bool:
        return digest in self._places

    def __getitem__(self, digest: bytes) -> Tensor:
        number, row = self._places[digest]
        return self._open(number)[row].clone()

    def _features(self, number: int) -> Tensor:
        with safe_open(self._files[number], framework="pt") as part:
            return part.get_tensor("features")


@dataclass(frozen=True)
class _Inputs:
    """What the model takes for all pictures of a batch, or for one of it."""

    inputs: Mapping[str, Tensor]
    alone: bool = False


def _prepare(processor: Any, images: Sequence[Image.Image]) -> list[_Inputs | Exception]:
    """Model inputs of a batch; or of its pictures one by one, where the processor refuses one of them."""
    try:
        return [_Inputs(image_inputs(processor, images), alone=len(images) == 1)]
    except Exception as error:  # each processor refuses in its own way what is too small or too long
        if len(images) == 1:
            return [error]
        return [one for image in images for one in _prepare(processor, [image])]


def _read_all(entries: Sequence[Any], known: _Known) -> list[_Read | Exception]:
    """Of each entry the hash of the picture, and the picture, if it is not known; or why it cannot be read."""
    found: list[_Read | Exception] = []
    for entry in entries:
        try:
            digest, content = _hashed(entry)
            found.append((digest, None if digest in known else read_picture(content)))
        except Exception as error:  # what a broken file raises is up to a dozen decoders
            found.append(error)
    return found


def _told_of(
    first: int, names: Sequence[str], read: Future[list[_Read | Exception]]
) -> Iterator[tuple[int, str, _Read | Exception]]:
    return zip(range(first, first + len(names)), names, read.result(), strict=True)


def _hashed(entry: Any) -> tuple[bytes, Any]:
    """The hash of a picture's file, or of its pixels where there is none; and what was hashed."""
    content = encoded(entry)
    if content is not None:
        return hashlib.blake2b(content, digest_size=_DIGEST).digest(), content
    image = read_picture(entry)
    return hashlib.blake2b(f"{image.size}".encode() + image.tobytes(), digest_size=_DIGEST).digest(), image


def _hash_of(source: ImageSource, n_entries: int | None) -> str:
    """A hash of the first entries of a source, or of all."""
    digest = hashlib.blake2b(f"{source.limit}".encode(), digest_size=12)
    for name, entry in islice(source.entries(), n_entries):
        digest.update(name.encode())
        try:
            digest.update(_hashed(entry)[0])
        except Exception as error:
            digest.update(why_unreadable(error).encode())
    return digest.hexdigest()


def _write_whole(folder: Path, files: Sequence[Path]) -> None:
    """Writes what is known of all parts together, unless it is there."""
    whole = folder / _WHOLE
    if whole.exists():
        with safe_open(whole, framework="pt") as file:
            if file.get_slice("rows").get_shape() == [len(files)]:
                return
    rows, total = [], torch.zeros((), dtype=torch.float64)
    for path in files:
        with safe_open(path, framework="pt") as part:
            rows.append(len(part.get_tensor("position")))
            if rows[-1]:
                total = total + part.get_tensor("sum")
    mean = (total / max(1, sum(rows))).float()
    distances = []
    for path in files:
        with safe_open(path, framework="pt") as part:
            # few rows at a time stay in the processor's cache
            distances += [(some - mean).norm(dim=1) for some in part.get_tensor("features").split(64) if len(some)]
    _save(
        whole,
        {"rows": torch.tensor(rows), "mean": mean, "distances": torch.cat(distances) if distances else torch.zeros(0)},
    )


def _told(file: Path) -> dict[str, Any]:
    with safe_open(file, framework="pt") as part:
        return json.loads(part.get_tensor("told").numpy().tobytes())


def _save(path: Path, tensors: Mapping[str, Tensor]) -> None:
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, beside)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
