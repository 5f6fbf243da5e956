from __future__ import annotations

import io
import tarfile
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from peft_space.concepts import image_source, images, load_public_images
from peft_space.concepts.images import Undecoded, read_picture, why_unreadable
from tests.concepts.test_images import BLUE, RED, data_set, encoded, picture


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """A folder with a shard of each kind beside a picture; each shard has a picture that cannot be read."""
    pictures = [encoded(picture(colour=RED)), b"broken", encoded(picture(colour=BLUE))]
    with tarfile.open(tmp_path / "a.tar", "w") as shard:
        for number, data in enumerate(pictures):
            for ending, content in (("png", data), ("json", b"{}")):
                member = tarfile.TarInfo(f"{number:03d}.{ending}")
                member.size = len(content)
                shard.addfile(member, io.BytesIO(content))
    table = pa.table({"photo": [{"bytes": data, "path": None} for data in pictures], "words": ["a", "b", "c"]})
    pq.write_table(table, tmp_path / "b.parquet", row_group_size=2)
    picture(colour=BLUE).save(tmp_path / "c.png")
    return tmp_path


def test_shards_are_read_with_the_folder_that_they_lie_in(shards):
    found = load_public_images(shards, image_column="photo")
    assert found.ids == ("a.tar/000.png", "a.tar/002.png", "b.parquet/0", "b.parquet/2", "c.png")
    assert [image.getpixel((0, 0)) for image in found.images] == [RED, BLUE, RED, BLUE, BLUE]
    assert [name for name, _ in found.skipped] == ["a.tar/001.png", "b.parquet/1"]


@pytest.mark.parametrize(("name", "first"), [("a.tar", "a.tar/000.png"), ("b.parquet", "b.parquet/0")])
def test_one_shard(shards, name, first):
    assert load_public_images(str(shards / name), image_column="photo").ids[0] == first


def test_a_shard_without_the_column_is_refused(shards):
    with pytest.raises(ValueError, match=r"must be a column of the data set, \['photo', 'words'\]; got 'image'"):
        load_public_images(shards)


@pytest.mark.parametrize("name", ["x.tar", "x.parquet"])
def test_a_shard_that_cannot_be_read_is_named(shards, name):
    (shards / name).write_bytes(b"no shard at all" * 100)
    assert load_public_images(shards, image_column="photo").skipped[-1][0] == name


def test_any_part_of_a_source_can_be_read(shards):
    for source in (
        image_source(shards, image_column="photo"),
        image_source(data_set("photo"), image_column="photo"),
        image_source(data_set("photo").to_iterable_dataset(), image_column="photo"),
        image_source([picture(), picture(colour=BLUE), picture()]),
    ):
        ids = [name for name, _ in source.entries()]
        assert [name for name, _ in source.entries(1)] == ids[1:]
        assert [name for name, _ in source.pick([0, 2])] == [ids[0], ids[2]]
        assert source.pick([]) == [] and source.size in (None, len(ids))


def test_the_limit_counts_from_the_start():
    source = image_source([picture()] * 5, limit=3)
    assert len(list(source.entries())) == source.size == 3
    assert [name for name, _ in source.entries(2)] == ["2"] and list(source.entries(4)) == []


def test_a_stream_is_read_as_far_as_it_is_asked_for():
    read = []

    def rows():
        for number in range(1000):
            read.append(number)
            yield {"image": picture()}

    stream = datasets.IterableDataset.from_generator(rows)
    next(image_source(stream).entries())
    assert len(read) < 10


def test_the_version_tells_whether_files_have_changed(shards):
    def version(**options):
        return image_source(shards, image_column="photo", **options).version

    first = version()
    assert first == version() != version(limit=2)
    (shards / "c.png").write_bytes(encoded(picture(colour=RED)))
    assert version() != first


def test_the_version_of_a_data_set_is_its_fingerprint():
    version = image_source(data_set()).version
    assert version == image_source(data_set()).version != image_source(data_set().select([0])).version
    assert image_source(data_set().to_iterable_dataset()).version is None


def test_a_file_of_a_hundred_megapixels_is_reduced(tmp_path):
    Image.new("RGB", (12_500, 8_000), RED).save(tmp_path / "large.jpg")
    large = read_picture(tmp_path / "large.jpg")
    assert 0.2 * images.ENOUGH_PIXELS < large.width * large.height <= images.ENOUGH_PIXELS
    assert large.width / large.height == pytest.approx(12_500 / 8_000, rel=1e-2)


def test_a_large_file_that_is_no_jpeg_is_reduced_too(monkeypatch):
    monkeypatch.setattr(images, "ENOUGH_PIXELS", 24)
    assert read_picture(encoded(picture((12, 8)))).size == (6, 4)


@pytest.mark.parametrize("check", ["Pillow's", "ours"])
def test_a_decompression_bomb_is_refused_unopened(tmp_path, monkeypatch, check):
    # one bit a pixel, nearly nothing on disk
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    Image.new("1", (20_000, 10_000)).save(tmp_path / "bomb.png")
    if check == "Pillow's":
        monkeypatch.undo()
    monkeypatch.setattr(Image.Image, "convert", lambda *args: pytest.fail("it was decoded"))
    with pytest.raises((ValueError, Image.DecompressionBombError), match="bomb"):
        read_picture(tmp_path / "bomb.png")


def test_of_an_animation_the_first_frame_is_taken(tmp_path):
    frames = [picture(colour=RED), picture(colour=BLUE)]
    frames[0].save(tmp_path / "film.gif", save_all=True, append_images=frames[1:])
    assert load_public_images(tmp_path).images[0].getpixel((0, 0)) == RED


def test_pictures_may_be_read_as_they_are_asked_for(tmp_path):
    for name, colour in (("a.png", RED), ("b.png", BLUE)):
        picture(colour=colour).save(tmp_path / name)
    lazy = Undecoded([tmp_path / "a.png", tmp_path / "b.png"])
    assert len(lazy) == 2 and lazy[1].getpixel((0, 0)) == BLUE
    assert [image.getpixel((0, 0)) for image in lazy[:2]] == [RED, BLUE]


def test_reasons_hold_no_path_of_this_machine(tmp_path):
    for broken in (tmp_path / "gone.png", b"broken"):
        with pytest.raises(OSError) as caught:
            read_picture(broken)
        assert str(tmp_path) not in why_unreadable(caught.value) and "0x" not in why_unreadable(caught.value)


def test_a_link_to_a_shard_changes_with_what_it_leads_to(tmp_path):
    shard, link = tmp_path / "real.tar", tmp_path / "link.tar"
    shard.write_bytes(b"one")
    link.symlink_to(shard)
    before = image_source(link).version
    shard.write_bytes(b"other")
    assert image_source(link).version != before
