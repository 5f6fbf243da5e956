from __future__ import annotations

import io
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from peft_space.concepts import PublicImages, load_public_images
from peft_space.concepts.images import content_key

RED, BLUE = (255, 0, 0), (0, 0, 255)


def picture(size: tuple[int, int] = (12, 8), colour: tuple[int, int, int] = RED) -> Image.Image:
    return Image.new("RGB", size, colour)


def encoded(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One good file of many kinds, two that cannot be read, and one that is no picture."""
    picture().save(tmp_path / "b.png")
    (tmp_path / "deep").mkdir()
    picture((1, 1), BLUE).save(tmp_path / "deep" / "tiny.GIF")
    picture().convert("CMYK").save(tmp_path / "print.jpg")
    Image.new("RGBA", (5, 5), (0, 255, 0, 0)).save(tmp_path / "clear.webp")
    turned = picture()
    turned.paste(BLUE, (0, 0, 6, 8))
    exif = Image.Exif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.jpg", exif=exif, quality=100)
    (tmp_path / "broken.png").write_bytes(encoded(picture((64, 64)))[:60])
    (tmp_path / "empty.jpeg").write_bytes(b"")
    (tmp_path / "notes.txt").write_text("not a picture")
    return tmp_path


@pytest.mark.parametrize("as_type", [str, Path])
def test_a_folder_is_searched_and_what_cannot_be_read_is_named(folder, as_type):
    found = load_public_images(as_type(folder))
    assert found.ids == ("b.png", "clear.webp", "deep/tiny.GIF", "print.jpg", "turned.jpg")
    assert {image.mode for image in found.images} == {"RGB"}
    assert len(found) == 5
    assert [name for name, _ in found.skipped] == ["broken.png", "empty.jpeg"]
    assert all(reason for _, reason in found.skipped)


def test_pictures_stand_upright(folder):
    turned = load_public_images(folder).images[-1]
    assert turned.size == (8, 12)
    top, bottom = np.asarray(turned)[2, 4], np.asarray(turned)[-2, 4]
    assert top[2] > 200 > top[0] + 100
    assert bottom[0] > 200 > bottom[2] + 100


def test_the_home_folder_may_be_abbreviated(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    assert len(load_public_images(f"~/{folder.name}")) == 5


def test_the_limit_counts_what_is_looked_at(folder):
    assert load_public_images(folder, limit=1).ids == ("b.png",)
    found = load_public_images([picture()] * 5)
    assert len(load_public_images(found, limit=3)) == 3
    assert load_public_images(found) is found


def test_a_list_keeps_its_order_and_skips_what_is_no_picture():
    found = load_public_images([picture(colour=RED), "text", picture(colour=BLUE)])
    assert found.ids == ("0", "2")
    assert found.images[1].getpixel((0, 0)) == BLUE
    assert found.skipped == (("1", "ValueError: not a picture but a str"),)


def data_set(column: str = "image") -> datasets.Dataset:
    rows = [{"bytes": encoded(picture(colour=c)), "path": None} for c in (RED, BLUE)]
    rows.insert(1, {"bytes": b"broken", "path": None})
    return datasets.Dataset.from_dict({column: rows}, features=datasets.Features({column: datasets.Image()}))


@pytest.mark.parametrize("streaming", [False, True])
def test_a_data_set_is_read_and_a_broken_row_does_not_end_it(streaming):
    rows = data_set("photo").to_iterable_dataset() if streaming else data_set("photo")
    found = load_public_images(rows, image_column="photo")
    assert found.ids == ("0", "2")
    assert found.images[1].getpixel((0, 0)) == BLUE
    assert [name for name, _ in found.skipped] == ["1"]


def test_rows_that_are_made_as_they_are_read_need_no_declared_columns():
    rows = datasets.IterableDataset.from_generator(lambda: ({"image": picture()} for _ in range(2)))
    assert len(load_public_images(rows)) == 2
    with pytest.raises(ValueError, match=r"`image_column` must be a column of the data set, \['image'\]; got 'photo'"):
        load_public_images(rows, image_column="photo")


def test_a_missing_column_is_named_with_those_there_are():
    with pytest.raises(ValueError, match=r"`image_column` must be a column of the data set, \['photo'\]; got 'image'"):
        load_public_images(data_set("photo"))


def test_a_folder_without_pictures_is_refused(tmp_path):
    with pytest.raises(ValueError, match="`public_images` must hold at least one readable picture; got none from"):
        load_public_images(tmp_path)


def test_where_nothing_can_be_read_the_first_reason_is_given(tmp_path):
    (tmp_path / "one.png").write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"The first of 1 that could not be read: one\.png: UnidentifiedImageError: "):
        load_public_images(tmp_path)
    with pytest.raises(ValueError, match="got none from a list"):
        load_public_images([])


@pytest.mark.parametrize("path", ["missing", "/missing/folder", "a/b/c", Path("missing/folder")])
def test_a_folder_that_is_not_there_is_refused(path):
    with pytest.raises(ValueError, match="must be a folder that exists or a Hub data-set id 'owner/name'; got"):
        load_public_images(path)


def test_a_data_set_that_cannot_be_loaded_is_refused_with_the_reason(monkeypatch):
    def fail(*args, **kwargs):
        raise datasets.exceptions.DatasetNotFoundError("no such data set")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(ValueError, match=r"got 'owner/name'. DatasetNotFoundError: no such data set"):
        load_public_images("owner/name")


def test_a_data_set_id_is_streamed(monkeypatch):
    asked = []
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: asked.append((args, kwargs)) or data_set())
    public = load_public_images("owner/name", split="test")
    assert len(public) == 2 and (public.dataset, public.split) == ("owner/name", "test")
    assert (public.take([1]).dataset, public.take([1]).split) == ("owner/name", "test")
    assert load_public_images(list(public.images)).dataset is None
    assert asked == [(("owner/name",), {"split": "test", "streaming": True})]


def test_without_datasets_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match=r"peft-space\[data\]"):
        load_public_images("owner/name")


@pytest.mark.parametrize("source", [None, 3, picture()])
def test_anything_else_is_refused(source):
    with pytest.raises(TypeError, match="`public_images` must be a list of PIL images"):
        load_public_images(source)


def test_take_keeps_pictures_and_ids_together():
    found = PublicImages((picture(colour=RED), picture(colour=BLUE)), ("red", "blue"))
    taken = found.take([1])
    assert (taken.ids, taken.images[0].getpixel((0, 0))) == (("blue",), BLUE)


def test_content_key_tells_pictures_apart_and_copies_not():
    assert content_key(picture()) == content_key(picture().copy())
    assert content_key(picture()) != content_key(picture(colour=BLUE))
    assert content_key(picture((4, 6))) != content_key(picture((6, 4)))
