"""Pictures to attack with, and answers to them that are made up."""

import pytest

from peft_space.attacks.aims import Aims, Shown

OTHERS = ("zormok", "keltus", "brumok")


@pytest.fixture(scope="session")
def aims(concept, public):
    def show(places, *names):
        return tuple(Shown(public.images[p], (names[p % len(names)],), p) for p in places)

    return Aims(
        concept,
        target=show(range(4), "narril"),
        target_train=show(range(4, 8), "narril"),
        control=show(range(8, 14), *OTHERS),
        control_train=show(range(14, 26), *OTHERS),
        whose="pictures of the concept",
        truth="labels",
        data="held out",
    )
