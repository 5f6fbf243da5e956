"""Erasures that begin and end and are not done between: for tests of what stands around them.

Whole ones of the shipped model are `tests/test_demo.py` and the notebook `erase`.
"""

from __future__ import annotations

import pytest

from peft_space import SpaceTrainingArguments, testbed

STEPS, IMAGES = 10, 240


def shorten(patch: pytest.MonkeyPatch) -> None:
    """No training has more than `STEPS` steps, no public set of the test bed more than `IMAGES` pictures."""
    whole, public_images = SpaceTrainingArguments.__post_init__, testbed.public_images

    def checked(args: SpaceTrainingArguments) -> None:
        whole(args)
        args.max_steps = min(args.max_steps, STEPS)

    def few(target, n_images=IMAGES, seed=0):
        return public_images(target, min(n_images, IMAGES), seed)

    patch.setattr(SpaceTrainingArguments, "__post_init__", checked)
    patch.setattr(testbed, "public_images", few)
