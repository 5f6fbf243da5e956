import numpy as np
import pytest
from PIL import Image

from peft_space.attacks.pictures import CHANGES, changed, shuffle_patches


@pytest.fixture
def image():
    pixels = np.random.default_rng(0).integers(0, 255, (50, 46, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize("key", CHANGES)
def test_a_change_keeps_size_and_mode_and_leaves_the_picture_itself(image, key):
    before = image.tobytes()
    after = CHANGES[key][1](image, np.random.default_rng(0))
    assert after.size == image.size and after.mode == "RGB"
    assert after.tobytes() != before and image.tobytes() == before


def test_shuffled_patches_are_the_same_patches(image):
    after = shuffle_patches(image, np.random.default_rng(0))
    then, now = np.asarray(image), np.asarray(after)
    inner = [np.sort(pixels[:48, :44].reshape(-1, 3), axis=0) for pixels in (then, now)]
    assert (inner[0] == inner[1]).all() and not (then[:48, :44] == now[:48, :44]).all()
    assert (then[:, 44:] == now[:, 44:]).all() and (then[48:] == now[48:]).all()


def test_a_picture_smaller_than_its_patches_stays():
    tiny = Image.new("RGB", (3, 3))
    assert shuffle_patches(tiny, np.random.default_rng(0)) is tiny


def test_the_pictures_keep_their_units_and_names(aims):
    after = changed(aims, CHANGES["flip"][1], seed=0)
    for then, now in zip((*aims.target, *aims.control), (*after.target, *after.control), strict=True):
        assert (then.unit, then.names) == (now.unit, now.names) and then.image is not now.image
    assert after.target_train is aims.target_train
