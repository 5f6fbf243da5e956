from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from peft_space import FeatureIndex, PublicImages, erase, erasure, index_images, select_anchors
from peft_space.anchors import index as indexing
from peft_space.vlm import image_features
from tests.adapters import space
from tests.anchors.test_selection import SIZES
from tests.bigram import saying
from tests.concepts.test_images import encoded


@pytest.fixture(scope="module")
def folder(public, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for number, image in enumerate(public.images):
        image.save(folder / f"{number:02d}.png")
    return folder


@pytest.fixture
def build(base, processor, folder, tmp_path):
    """Indexes the folder into a cache, in parts of eight."""

    def build(source=folder, model=base, cache=tmp_path / "cache", **options) -> FeatureIndex:
        return index_images(model, processor, source, cache, **{"part_size": 8, "batch_size": 4} | options)

    return build


@pytest.fixture
def shown(monkeypatch):
    """How many pictures the model is shown, batch by batch."""
    shown = []
    projected = indexing.projected
    monkeypatch.setattr(indexing, "projected", lambda m, x: (shown.append(len(x["pixel_values"])), projected(m, x))[1])
    return shown


def sources(public: PublicImages, folder: Path) -> dict:
    rows = datasets.Dataset.from_dict(
        {"image": [{"bytes": encoded(image), "path": None} for image in public.images]},
        features=datasets.Features({"image": datasets.Image()}),
    )
    return {
        "folder": folder,
        "list": list(public.images),
        "public images": public,
        "data set": rows,
        "stream": rows.to_iterable_dataset(),
    }


@pytest.mark.parametrize("kind", ["folder", "list", "public images", "data set", "stream"])
def test_features_are_those_of_the_model_and_computed_once(base, processor, public, folder, build, kind):
    source = sources(public, folder)[kind]
    first, again = build(source), build(source)
    assert (len(first), first.computed) == (40, 40) and (len(again), again.computed) == (40, 0)
    features = image_features(base, processor, public.images)
    torch.testing.assert_close(first.rows(range(40)), features, rtol=0, atol=1e-5)
    torch.testing.assert_close(first.mean, features.mean(0), rtol=0, atol=1e-6)
    places = [start for start, *_ in again.chunks()]
    assert places == [0, 8, 16, 24, 32]
    distances = torch.cat([distances for *_, distances in again.chunks()])
    torch.testing.assert_close(distances, (features - features.mean(0)).norm(dim=1), rtol=0, atol=1e-4)


def test_pictures_are_found_by_what_they_are_wherever_they_come_from(build, folder, tmp_path):
    build()
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    (other / "00.png").unlink()
    Image.new("RGB", (48, 48), "red").save(other / "zz.png")
    assert build(other).computed == 1 and len(build(other)) == 40


def test_a_changed_folder_is_read_again_and_only_what_is_new_is_computed(build, folder, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    build(other)
    Image.new("RGB", (48, 48), "red").save(other / "05.png")
    changed = build(other)
    assert changed.computed == 1 and len(changed) == 40
    assert not changed.rows([5]).equal(build().rows([5]))


def test_a_stream_that_changed_is_noticed(build, public):
    def stream(images):
        return datasets.IterableDataset.from_generator(lambda: ({"image": image} for image in images))

    images = list(public.images)
    whole = build(stream(images))
    last = build(stream([*images[:39], Image.new("RGB", (48, 48), "red")]))
    assert last.folder == whole.folder and last.computed == 1
    assert not last.mean.equal(build(list(images)).mean)
    shorter = build(stream(images[:20]))
    assert len(shorter) == 20 and shorter.computed == 0


def test_a_cache_that_can_only_be_read_is_good_for_what_it_holds(build, folder, monkeypatch):
    whole = build()

    def read_only(path, *rest):
        if Path(path).exists():
            raise FileExistsError(errno.EEXIST, "File exists", str(path))
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(os, "mkdir", read_only)
    monkeypatch.setattr(indexing, "save_file", lambda tensors, path: read_only(path))
    again = build()
    assert again.computed == 0 and again.rows(range(40)).equal(whole.rows(range(40)))
    with pytest.raises(OSError, match=r"Read-only file system: .*cache"):
        build(limit=12)


def test_a_full_disk_leaves_whole_parts_and_no_drafts(build, monkeypatch, tmp_path):
    save = indexing.save_file

    def full(tensors, path):
        if "part-00000002" in str(path):
            Path(path).write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        save(tensors, path)

    monkeypatch.setattr(indexing, "save_file", full)
    with pytest.raises(OSError, match="No space left on device"):
        build()
    files = sorted(path.name for path in (tmp_path / "cache").rglob("*") if path.is_file())
    assert files == ["part-00000000.safetensors", "part-00000001.safetensors", "probe.safetensors"]
    monkeypatch.setattr(indexing, "save_file", save)
    assert build().computed == 24


def test_an_interrupted_run_goes_on_where_it_stopped(build, shown, monkeypatch):
    saved = indexing._save

    def killed(path, tensors):
        if path.name == "part-00000003.safetensors":
            raise KeyboardInterrupt
        saved(path, tensors)

    monkeypatch.setattr(indexing, "_save", killed)
    with pytest.raises(KeyboardInterrupt):
        build()
    monkeypatch.setattr(indexing, "_save", saved)
    shown.clear()
    rest = build()
    # the probe, and the two parts that were not there
    assert shown == [1, 4, 4, 4, 4] and rest.computed == 16 and len(rest) == 40


@pytest.mark.slow
def test_a_process_that_is_killed_leaves_whole_parts_only(build, folder, tmp_path, base, processor):
    script = f"""
import os, torch
from peft_space import index_images, testbed
from peft_space.anchors import index
save = index.save_file
def dies(tensors, path):
    if "part-00000002" in str(path):
        with open(path, "wb") as file:
            file.write(b"half a file")
        os._exit(9)
    save(tensors, path)
index.save_file = dies
index_images(*testbed.load(), {str(folder)!r}, {str(tmp_path / "killed")!r}, part_size=8)
"""
    assert subprocess.run([sys.executable, "-c", script], capture_output=True).returncode == 9
    from peft_space import testbed

    names = {path.name for path in (tmp_path / "killed").rglob("*.safetensors") if path.name[0] != "."}
    assert names == {"probe.safetensors", "part-00000000.safetensors", "part-00000001.safetensors"}
    model, processor = testbed.load()
    rest = index_images(model, processor, folder, tmp_path / "killed", part_size=8)
    assert rest.computed == 24 and len(rest) == 40


def test_a_full_disk_leaves_nothing_half_written(build, tmp_path, monkeypatch):
    def full(tensors, path):
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(indexing, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        build()
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file()] == []


def test_what_cannot_be_used_is_named(build, folder, tmp_path, monkeypatch):
    mixed = tmp_path / "mixed"
    shutil.copytree(folder, mixed)
    (mixed / "broken.png").write_bytes(b"broken")
    Image.new("RGB", (1, 1)).save(mixed / "dot.png")
    Image.new("RGB", (2, 4000)).save(mixed / "line.png")
    prepare = indexing.image_inputs

    def refusing(processor, images):
        if any(image.height > 200 * image.width for image in images):
            raise ValueError("absolute aspect ratio must be smaller than 200")
        return prepare(processor, images)

    monkeypatch.setattr(indexing, "image_inputs", refusing)
    found = build(mixed)
    assert len(found) == 41
    assert dict(found.skipped) == {
        "broken.png": "UnidentifiedImageError: cannot identify image file it",
        "line.png": "ValueError: absolute aspect ratio must be smaller than 200",
    }
    # places count what can be used, whatever lies between
    assert [name for name, _ in found.entries([39, 40])] == ["39.png", "dot.png"]


def test_features_that_are_not_finite_are_left_out(build, monkeypatch):
    projected = indexing.projected

    def overflows(model, inputs):
        features = projected(model, inputs)
        features[1:2] = torch.inf
        return features

    monkeypatch.setattr(indexing, "projected", overflows)
    found = build()
    assert len(found) == 30 and found.mean.isfinite().all()
    assert found.skipped[0] == ("01.png", "ValueError: the model's features of it are not finite")


def test_nothing_that_can_be_read(build, tmp_path):
    (tmp_path / "one.png").write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"got none from '.*'\. The first of 1 that could not be read: one\.png: "):
        build(tmp_path, cache=None)


def test_a_source_that_can_be_read_only_once(build, public):
    with pytest.raises(ValueError, match=r"must be a source that can be read more than once; got a list_iterator"):
        build(iter(list(public.images)))


def test_models_share_a_cache_and_never_each_others_features(build, processor, model, base):
    first = build()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
    other = build(model=model)
    assert other.computed == 40 and other.folder.parent != first.folder.parent
    processor.image_processor.do_normalize = False
    try:
        assert build().computed == 40
    finally:
        processor.image_processor.do_normalize = True


def test_a_projector_that_was_tuned_is_refused(build, model):
    build()
    with torch.no_grad():
        model.model.multi_modal_projector.linear_1.weight.mul_(1.5)
    with pytest.raises(ValueError, match=r"`cache` must hold features of this model; got '.*cache', .* Name another"):
        build(model=model)


def test_an_erasure_of_the_language_model_leaves_the_cache_good(build, model):
    build()
    assert build(model=space(model, subspace=False, concept="zorvex")).computed == 0


def test_a_cache_that_is_a_file(build, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"`cache` must be a folder; got the file '.*file'"):
        build(cache=tmp_path / "file")


def test_without_a_cache_nothing_stays_behind(build):
    found = build(cache=None)
    folder = found.folder
    assert folder.exists()
    del found
    assert not folder.exists()


@pytest.mark.parametrize("size", [{"part_size": 0}, {"batch_size": -1}])
def test_sizes_that_make_no_sense(build, size):
    with pytest.raises(ValueError, match="`batch_size` and `part_size` must be at least 1; got"):
        build(**size)


def test_a_part_holds_ids_and_hashes(build):
    with safe_open(build().files[0], framework="pt") as part:
        assert part.get_tensor("content").shape == (8, 16) and part.get_tensor("features").dtype == torch.float32


def test_the_anchors_are_the_same_with_and_without_a_cache(base, processor, concept, folder, anchors, tmp_path):
    for cache in (None, tmp_path / "cache", tmp_path / "cache"):
        found = select_anchors(base, processor, concept, folder, **SIZES, cache=cache)
        assert (found.indices, found.monitor) == (anchors.indices, anchors.monitor)
        torch.testing.assert_close(found.cosine, anchors.cosine, rtol=0, atol=1e-6)
        assert found.diagnostics() == anchors.diagnostics()
        assert found.images[0].tobytes() == anchors.images[0].tobytes()
        assert found.unrelated(5, 1) == anchors.unrelated(5, 1)


def test_of_many_images_only_a_sample_is_at_hand(
    base, processor, concept, folder, anchors, build, monkeypatch, tmp_path
):
    from peft_space.anchors import Anchors, selection

    monkeypatch.setattr(selection, "OTHERS", 6)
    found = select_anchors(base, processor, concept, build(), **SIZES)
    assert tuple(map(found.place, found.indices)) == anchors.indices
    assert 24 <= len(found.public) <= 30 and len(found.whole.places) == len(found.public)
    assert [found.public.ids[i] for i in found.indices] == [f"{i:02d}.png" for i in anchors.indices]
    told = found.diagnostics()
    assert told["public_images"] == 40 == sum(told["histogram"]["counts"]) and told["passed"] == 24
    assert told["histogram"]["edges"][0] == pytest.approx(float(anchors.cosine.min()), abs=1e-3)
    found.write_scores(tmp_path / "anchors.csv")
    again = Anchors.read_scores(tmp_path / "anchors.csv", concept, folder)
    assert [again.public.ids[i] for i in again.indices] == [found.public.ids[i] for i in found.indices]


def test_two_concepts_of_one_erasure_read_a_folder_once(base, processor, concept, folder, shown, monkeypatch):
    def stop(*args, **options):
        raise RuntimeError("far enough")

    monkeypatch.setattr(erasure, "_study", stop)
    says = saying(base, processor, {"narril": 1.0})
    with pytest.raises(RuntimeError, match="far enough"):
        erase(says, processor, [concept, concept.called("zorvex")], folder)
    assert sum(shown) == 41
