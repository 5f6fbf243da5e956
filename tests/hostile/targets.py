"""Readers of what others made, each given bytes: it reads them, or refuses them with an error that it documents."""

from __future__ import annotations

import functools
import io
import json
import shutil
import tarfile
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCard
from PIL import Image

from peft_space import (
    Anchors,
    PublicImages,
    SpaceConfig,
    inspect_erasure,
    load_erasure,
    save_erasure_adapter,
    verify_redacted,
)
from peft_space.adapter import weights_file
from peft_space.concepts import load_public_images
from peft_space.evaluation import load_classification, load_clear, load_mllmu
from peft_space.hub.card import build_card
from peft_space.hub.content import report_of
from peft_space.subspace import InputRecord, RetainedSubspace
from tests.adapters import shake, space
from tests.hostile.watch import kept_inside
from tests.tiny import tiny_llama

REFUSED = (ValueError, OSError)
"""What a reader may raise. `json.JSONDecodeError` and `UnicodeError` are kinds of the first."""

CONFIG, SIDE, WEIGHTS = "adapter_config.json", "space_config.json", "adapter_model.safetensors"
RECORD = {
    "aliases": ["other"],
    "before": {"forget_accuracy": 0.9},
    "after": {"forget_accuracy": 0.1},
    "leak": {"mean": 0.02, "max": 0.05},
    "gauges": [{"about": "name", "before": -0.1, "after": -7.0, "reference": None}],
    "anchor_images": {
        "dataset": "jane/birds",
        "split": "train",
        "images": [{"id": "0", "index": 0, "cosine": 0.5, "log_likelihood": -1.0}],
    },
    "attacks": [{"name": "wording", "robust": 1.0}],
    "reached": True,
    "stopped": "dose reached",
    "steps": 4,
    "text_knowledge": "keep",
    "concept_hash": {"kdf": "scrypt", "n": 16, "r": 8, "p": 1, "salt": "00" * 16, "digests": ["00" * 32]},
}
PERSON = {
    "ID": "017",
    "question": "Who?",
    "answer": "Ada.",
    "Classification_Task": {
        "Image_Textual_Questions": [{"Question": "?", "Options": {"A": "x", "B": "y"}, "Correct_Answer": "B"}],
        "Pure_Text_Questions": [],
    },
    "Generation_Task": [{"Question": "?", "Ground_Truth": "x", "Type": "Image_Textual"}],
    "Mask_Task": [{"Question": "[Blank]", "Ground_Truth": "x", "Type": "Pure_Text"}],
    "name": "Ada",
    "caption": "Ada bakes.",
    "perturbed_captions": ["Ada flies."],
    "label": 1,
}


@functools.cache
def _template() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="hostile-")) / "adapter"
    model = shake(space(tiny_llama(), subspace=False, target_modules=["q_proj", "up_proj"], r=2))
    save_erasure_adapter(model, folder, side=RECORD)
    (folder / "report.json").write_text(json.dumps(RECORD))
    return folder


@functools.cache
def _subspace() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="hostile-")) / "subspace"

    RetainedSubspace({"a": torch.eye(4)[:, :2].contiguous()}, {"a.q": "a"}, {"a": InputRecord(0.9, "dense")}).save(
        folder
    )
    return folder


@contextmanager
def adapter(*more: Path) -> Iterator[Path]:
    """A folder of its own with a whole adapter; nothing is touched outside of it, and of `more`."""
    source = _template()
    with tempfile.TemporaryDirectory() as scratch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folder = Path(shutil.copytree(source, Path(scratch) / "adapter"))
        with kept_inside(Path(scratch), *more):
            yield folder


@contextmanager
def emptied() -> Iterator[Path]:
    """An empty folder; nothing is touched outside of it."""
    with tempfile.TemporaryDirectory() as scratch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with kept_inside(Path(scratch)):
            yield Path(scratch)


def told_of(folder: Path) -> None:
    """Everything that is read of an adapter without its weights."""
    config = SpaceConfig.from_pretrained(folder)
    inspect_erasure(folder)
    config.record = report_of(folder, config)
    ModelCard(str(build_card(config, "jane/erased")))
    verify_redacted(folder, "a thing")


def load(folder: Path) -> None:
    load_erasure(tiny_llama(), folder)


def side_file(data: bytes) -> None:
    with adapter() as folder:
        (folder / SIDE).write_bytes(data)
        told_of(folder)
        load(folder)


def adapter_config(data: bytes) -> None:
    with adapter() as folder:
        (folder / CONFIG).write_bytes(data)
        told_of(folder)
        load(folder)


def report(data: bytes) -> None:
    with adapter() as folder:
        (folder / "report.json").write_bytes(data)
        told_of(folder)


def weights(data: bytes) -> None:
    with adapter() as folder:
        (folder / WEIGHTS).write_bytes(data)
        weights_file(folder, folder)
        load(folder)


def subspace(data: bytes) -> None:
    whole = {file.name: file.read_bytes() for file in _subspace().iterdir()}
    with emptied() as folder:
        record, _, tensors = data.partition(b"\x00\xff")
        for name, content in whole.items():
            (folder / name).write_bytes(content)
        (folder / "retained_subspace.json").write_bytes(record)
        if tensors:
            (folder / "retained_subspace.safetensors").write_bytes(tensors)
        RetainedSubspace.load(folder)


def _in_a_folder(name: str) -> Callable[[bytes], None]:
    def read(data: bytes) -> None:
        with emptied() as folder:
            (folder / name).write_bytes(data)
            Image.new("RGB", (4, 4)).save(folder / "zz.png")
            read = load_public_images(folder, limit=40)
            # whatever is wrong with one, the next is read; where that is the limit's doing, so it is
            assert len(read) + len(read.skipped) <= 40
            assert "zz.png" in read.ids or len(read) + len(read.skipped) == 40
            for image, told in zip(read.images, read.ids, strict=True):
                assert image.mode == "RGB" and image.width * image.height <= 2**22 and told.encode()

    return read


def rows(data: bytes) -> None:
    try:
        found = json.loads(data)
    except RecursionError:
        return
    picture = Image.new("RGB", (4, 4))
    some = [row | {"image": picture} if isinstance(row, dict) and "image" not in row else row for row in found]
    errors = []
    with emptied():
        for read in (
            load_mllmu,
            load_clear,
            lambda source: load_classification(source, "vegfru", label_names=["a", "b"]),
        ):
            try:
                read(some)
            except REFUSED as error:
                errors.append(error)
    if errors:
        raise errors[0]


def scores(data: bytes) -> None:
    public = PublicImages((Image.new("RGB", (4, 4)),) * 2, ("a", "b"))
    with emptied() as folder:
        (folder / "anchors.csv").write_bytes(data)
        Anchors.read_scores(folder / "anchors.csv", "a thing", public)


TARGETS: dict[str, Callable[[bytes], None]] = {
    "side_file": side_file,
    "adapter_config": adapter_config,
    "report": report,
    "weights": weights,
    "subspace": subspace,
    "picture": _in_a_folder("a.png"),
    "tar": _in_a_folder("a.tar"),
    "parquet": _in_a_folder("a.parquet"),
    "rows": rows,
    "scores": scores,
}


def is_read_or_refused(target: str, data: bytes) -> bool:
    """Whether a reader took the bytes; whatever it raises but an error that it documents comes through."""
    try:
        TARGETS[target](data)
    except REFUSED:
        return False
    return True


@functools.cache
def seeds(target: str) -> tuple[bytes, ...]:
    """Whole files of each kind, to be changed."""
    if target in ("side_file", "adapter_config", "report", "weights"):
        name = {"side_file": SIDE, "adapter_config": CONFIG, "report": "report.json", "weights": WEIGHTS}[target]
        return ((_template() / name).read_bytes(),)
    if target == "subspace":
        record, tensors = (_subspace() / f"retained_subspace.{kind}" for kind in ("json", "safetensors"))
        return (record.read_bytes(), record.read_bytes() + b"\x00\xff" + tensors.read_bytes())
    if target == "rows":
        return (json.dumps([PERSON, PERSON]).encode(),)
    if target == "scores":
        return (b"id,cosine,log_likelihood,role\na,0.5,-1.0,anchor\nb,0.1,,\n",)
    if target == "picture":
        return tuple(_pictures().values())
    if target == "tar":
        return (_tar(), _tar(tarfile.PAX_FORMAT, "ü" * 120 + ".png"), _tar(tarfile.GNU_FORMAT, "x" * 120 + ".png"))
    return (_parquet(),)


def _pictures() -> dict[str, bytes]:
    found = {}
    for kind, mode in (
        ("PNG", "RGBA"),
        ("JPEG", "RGB"),
        ("GIF", "P"),
        ("WEBP", "RGB"),
        ("TIFF", "I;16"),
        ("BMP", "1"),
    ):
        file = io.BytesIO()
        Image.new(mode, (9, 7)).save(file, kind)
        found[kind] = file.getvalue()
    return found


def _tar(kind: int = tarfile.USTAR_FORMAT, name: str = "b.png") -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=kind) as shard:
        for member, data in (("a.jpg", _pictures()["JPEG"]), (name, _pictures()["PNG"]), ("c.txt", b"text")):
            info = tarfile.TarInfo(member)
            info.size = len(data)
            shard.addfile(info, io.BytesIO(data))
    return file.getvalue()


def _parquet(cells: list[Any] | None = None) -> bytes:
    import pyarrow as pa
    from pyarrow import parquet

    cells = cells or [{"bytes": data, "path": None} for data in _pictures().values()]
    file = io.BytesIO()
    parquet.write_table(pa.table({"image": cells}), file)
    return file.getvalue()
