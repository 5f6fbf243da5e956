"""Pictures, shards, tables and rows that anybody may have made: what is wrong is told, and the rest is read."""

from __future__ import annotations

import io
import json
import os
import struct
import tarfile
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from peft_space.concepts import load_public_images
from peft_space.concepts import sources as sources_of
from peft_space.concepts.images import read_picture
from peft_space.evaluation import load_classification
from peft_space.evaluation.datasets import _check_place, _picture
from tests.hostile.drawing import changed_bytes, changed_json, few
from tests.hostile.targets import PERSON, _parquet, _pictures, emptied, is_read_or_refused, seeds
from tests.hostile.watch import kept_inside

datasets = pytest.importorskip("datasets")

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n%%EOF\n"


@pytest.mark.parametrize("target", ["picture", "tar", "parquet", "rows"])
def test_whole_files_are_read(target):
    assert all(is_read_or_refused(target, seed) for seed in seeds(target))


@pytest.mark.parametrize("target", ["picture", "tar", "parquet"])
@few(25)
@given(data=st.data())
def test_changed_bytes_are_read_or_told(target, data):
    assert is_read_or_refused(target, data.draw(changed_bytes(data.draw(st.sampled_from(seeds(target))))))


@few(40)
@given(data=st.data())
def test_changed_rows_are_read_or_refused(data):
    is_read_or_refused("rows", data.draw(changed_json(seeds("rows")[0])))


@pytest.mark.parametrize("rows", [[3], [None], ["x"], [[]], [{}], [PERSON | {"ID": None}], [PERSON | {"label": {}}]])
def test_rows_of_another_form_are_refused(rows):
    with pytest.raises(ValueError, match=r"`source` must|`label_names` must"):
        load_classification(rows, "vegfru", label_names=["a", "b"])


def test_a_huge_text_in_a_row_is_a_text():
    assert is_read_or_refused("rows", json.dumps([PERSON | {"question": "x" * 2**20}]).encode())


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.gif"])
def test_no_program_is_started_for_a_picture(name):
    """Pillow gives EPS to Ghostscript, whatever the file is called."""
    Image.init()
    assert Image.open(io.BytesIO(EPS)).format == "EPS"
    with emptied() as folder:
        (folder / name).write_bytes(EPS)
        Image.new("RGB", (4, 4)).save(folder / "b.png")
        read = load_public_images(folder)
        assert read.ids == ("b.png",) and [told for told, _ in read.skipped] == [name]


def png(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 999)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("size", [(100_000, 100_000), (2**31 - 1, 1), (2**31 - 1, 2**31 - 1), (0, 5)])
def test_a_picture_of_more_pixels_than_is_bearable_is_not_decoded(size, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    with pytest.raises(Exception, match=r"bomb|cannot identify|truncated|size"):
        read_picture(png(*size))


def test_a_file_of_more_bytes_than_is_bearable_is_not_read(tmp_path):
    with (tmp_path / "a.png").open("wb") as sparse:
        sparse.truncate(2**40)
    Image.new("RGB", (4, 4)).save(tmp_path / "b.png")
    read = load_public_images(tmp_path)
    assert read.ids == ("b.png",) and read.skipped == (
        ("a.png", f"ValueError: a file of {2**40} bytes, of at most {2**28}"),
    )


def test_what_is_no_regular_file_is_not_opened(tmp_path):
    for name in ("a.png", "a.tar", "a.parquet"):
        os.mkfifo(tmp_path / name)
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    Image.new("RGB", (4, 4)).save(tmp_path / "z.png")
    read = load_public_images(tmp_path)
    assert read.ids == ("z.png",)
    assert sorted(name for name, _ in read.skipped) == ["a.parquet", "a.png", "a.tar", "zero.png"]


def test_a_folder_that_links_to_itself_ends(tmp_path):
    (tmp_path / "round").symlink_to(tmp_path)
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    assert load_public_images(tmp_path).ids == ("a.png",)


@pytest.mark.parametrize("name", [b"\xff\xfe.png", b"a\nb.png", b"=1+1.png", b"{name}.png", b"\x1b[31m.png"])
def test_a_name_that_is_no_text_is_written_as_one(name, tmp_path):
    (tmp_path / os.fsdecode(name)).write_bytes(_pictures()["PNG"])
    (told,) = load_public_images(tmp_path).ids
    assert told.encode() and told.endswith(".png")


def shard(*members: tuple[str, bytes, dict]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name, data, more in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            for key, value in more.items():
                setattr(info, key, value)
            tar.addfile(info, io.BytesIO(data))
    return file.getvalue()


def with_size(data: bytes, size: int) -> bytes:
    """The first header with another size, in base 256."""
    head = bytearray(data[:512])
    head[124:136] = (size + (0x80 << 88 if size >= 0 else 0xFF << 88) - (-(2**88) if size < 0 else 0)).to_bytes(
        12, "big"
    )
    head[148:156] = b" " * 8
    head[148:156] = f"{sum(head):06o}\0 ".encode()
    return bytes(head) + data[512:]


@pytest.mark.parametrize("name", ["../../escaped.png", "/etc/escaped.png", "a/../../b.png"])
def test_no_member_of_a_shard_is_written_anywhere(name, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.tar").write_bytes(shard((name, _pictures()["PNG"], {})))
    with kept_inside(tmp_path):
        read = load_public_images(tmp_path / "in")
    assert read.ids == (f"a.tar/{name}",)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a.tar", "in"]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_and_devices_of_a_shard_are_passed_over(kind, tmp_path):
    linked = ("secret.png", b"", {"type": kind, "linkname": "/etc/passwd"})
    (tmp_path / "a.tar").write_bytes(shard(linked, ("b.png", _pictures()["PNG"], {})))
    with kept_inside(tmp_path):
        assert load_public_images(tmp_path).ids == ("a.tar/b.png",)


@pytest.mark.parametrize("size", [2**60, 2**62, 2**29, -512, -1024, -(2**40)])
def test_a_member_whose_size_is_a_lie_ends_the_shard(size, tmp_path):
    whole = shard(("a.png", _pictures()["PNG"], {}), ("b.png", _pictures()["PNG"], {}))
    (tmp_path / "a.tar").write_bytes(with_size(whole, size))
    Image.new("RGB", (4, 4)).save(tmp_path / "z.png")
    read = load_public_images(tmp_path, limit=100)
    assert read.ids == ("z.png",) and 1 <= len(read.skipped) < 5


def test_headers_upon_headers_end(tmp_path):
    """A name that is told by another header, whose name is told by another ..."""
    long = io.BytesIO()
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 4
    long.write(info.tobuf(tarfile.GNU_FORMAT) + b"abc\0" + b"\0" * 508)
    (tmp_path / "a.tar").write_bytes(long.getvalue() * 5000 + shard(("a.png", _pictures()["PNG"], {})))
    Image.new("RGB", (4, 4)).save(tmp_path / "z.png")
    read = load_public_images(tmp_path)
    assert read.ids == ("z.png",) and "RecursionError" in read.skipped[0][1]


@pytest.mark.parametrize("place", ["/etc/passwd", "../secret.png", "http://127.0.0.1:9/x.png", "file:///etc/passwd"])
def test_a_shard_names_no_other_file(place, tmp_path):
    (tmp_path / "secret.png").write_bytes(_pictures()["PNG"])
    (tmp_path / "in").mkdir()
    cells = [{"bytes": None, "path": place}, {"bytes": _pictures()["PNG"], "path": place}]
    (tmp_path / "in" / "a.parquet").write_bytes(_parquet(cells))
    with kept_inside(tmp_path / "in"):
        read = load_public_images(tmp_path / "in")
    assert read.ids == ("a.parquet/1",) and read.skipped == (
        ("a.parquet/0", "ValueError: no picture lies in the shard"),
    )


@pytest.mark.parametrize(
    "cells", [[1, 2], ["x" * 2**16, None], [1.5], [[1, 2]], [b"", b"\x00"], [{"a": 1}], [True], [None, None]]
)
def test_cells_of_another_kind_are_told(cells, tmp_path):
    (tmp_path / "a.parquet").write_bytes(_parquet(cells))
    Image.new("RGB", (4, 4)).save(tmp_path / "z.png")
    read = load_public_images(tmp_path)
    assert read.ids == ("z.png",) and len(read.skipped) == len(cells)


@pytest.mark.parametrize(
    "place",
    [
        "/etc/passwd",
        "http://127.0.0.1:9/x.png",
        "hf://datasets/victim/private@main/x.png",
        "hf://datasets/jane/birds@main/../../../victim/private/x.png",
        "zip://a.png::/home/victim/a.zip",
        "hf://datasets/jane/birdsong@main/x.png",
        None,
    ],
)
def test_a_data_set_of_the_hub_names_no_file_but_its_own(place, monkeypatch):
    own = "zip://a.png::hf://datasets/jane/birds@main/a.zip"
    rows = [{"image": {"bytes": None, "path": place}}, {"image": {"bytes": None, "path": own}}]
    monkeypatch.setattr(sources_of, "_from_hub", lambda name, split: rows)
    monkeypatch.setattr(sources_of, "_commit_of", lambda name: None)
    (_, foreign), (_, known) = sources_of.image_source("jane/birds").entries()
    assert isinstance(foreign, ValueError) and known == {"bytes": None, "path": own}


def test_an_evaluated_set_names_no_file_but_its_own(tmp_path):
    (tmp_path / "set").mkdir()
    for folder in (tmp_path, tmp_path / "set"):
        (folder / "a.png").write_bytes(_pictures()["PNG"])
    (tmp_path / "set" / "link.png").symlink_to(tmp_path / "a.png")
    source = str(tmp_path / "set")
    assert _picture({"bytes": None, "path": str(tmp_path / "set" / "a.png")}, source).size == (9, 7)
    for place in (
        tmp_path / "a.png",
        tmp_path / "set" / ".." / "a.png",
        tmp_path / "set" / "link.png",
        None,
        "/dev/zero",
    ):
        with pytest.raises(ValueError, match="it names none of the data set"):
            _picture({"bytes": None, "path": place and str(place)}, source)
    with pytest.raises(ValueError, match="names none"):
        _check_place("/etc/passwd", "jane/birds")
    with pytest.raises(ValueError, match="`source` must hold pictures"):
        _picture({"bytes": EPS, "path": None}, source)
