from collections import Counter

import numpy as np
import pytest

from tests.beds import far


def test_a_far_public_set_holds_four_kinds_and_is_given_by_its_seed():
    first, again, other = (far.public_images(80, seed) for seed in (0, 0, 1))
    kinds = Counter(image_id.split("-")[1] for image_id in first.ids)
    assert set(kinds) == {"photograph", "texture", "object", "glyph"} and min(kinds.values()) >= 10
    assert all((image.size, image.mode) == ((48, 48), "RGB") for image in first.images)
    assert [image.tobytes() for image in first.images] == [image.tobytes() for image in again.images]
    assert first.images[0].tobytes() != other.images[0].tobytes()


@pytest.mark.parametrize("kind", [far.photograph, far.texture, far.thing, far.glyph])
def test_every_kind_has_something_to_see(kind):
    rng = np.random.default_rng(0)
    contrast = [np.asarray(kind(rng), dtype=float).std() for _ in range(20)]
    assert np.median(contrast) > 8


def test_no_digit_is_printed():
    assert not set(far.GLYPHS) & set("0123456789OoIlSsZzBbqgGQ|!")
