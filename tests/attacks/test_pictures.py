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
    inner = (44, 48)
    assert sorted(after.crop((0, 0, *inner)).getdata()) == sorted(image.crop((0, 0, *inner)).getdata())
    assert list(after.crop((44, 0, 46, 50)).getdata()) == list(image.crop((44, 0, 46, 50)).getdata())


def test_a_picture_smaller_than_its_patches_stays():
    tiny = Image.new("RGB", (3, 3))
    assert shuffle_patches(tiny, np.random.default_rng(0)) is tiny


def test_the_pictures_keep_their_units_and_names(aims):
    after = changed(aims, CHANGES["flip"][1], seed=0)
    for then, now in zip((*aims.target, *aims.control), (*after.target, *after.control), strict=True):
        assert (then.unit, then.names) == (now.unit, now.names) and then.image is not now.image
    assert after.target_train is aims.target_train
