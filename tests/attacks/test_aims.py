import dataclasses

import pytest
from PIL import Image

from peft_space.attacks.aims import LABELS, OWN_NAMES, find_aims
from peft_space.attacks.sides import Sides
from peft_space.evaluation import EvaluatedSet, Example
from tests.bigram import saying


@pytest.fixture(scope="module")
def find(base, processor, concept):
    def find(said=("zormok", "zormok"), **options):
        erased, kept = (saying(base, processor, {text: 1.0}) for text in said)
        sides = Sides(erased, processor, kept, batch_size=16, max_new_tokens=6)
        given = dict.fromkeys(("target_images", "labelled", "public_images", "anchors"))
        return find_aims(sides, concept, **given | {"n_images": 6, "n_train": 3, "seed": 0} | options)

    return find


def examples(images, *names):
    rows = (Example("Name it.", names[n % len(names)], image, names[n % len(names)]) for n, image in enumerate(images))
    return EvaluatedSet(tuple(rows))


def keys(shown):
    return {one.unit for one in shown}


def test_what_is_measured_and_what_the_attacker_holds_are_apart_even_where_pictures_are_copies(find, public):
    images = public.images
    target = [*images[:8], images[0].copy(), images[3].copy()]
    found = find(target_images=target, labelled=examples([*images[:2], *images[8:30]], "zormok", "keltus"))
    parts = [keys(some) for some in (found.target, found.target_train, found.control, found.control_train)]
    assert [len(part) for part in parts] == [5, 3, 6, 16]
    assert len(set().union(*parts)) == sum(map(len, parts))
    assert found.truth == LABELS and found.whose == "pictures of the concept" and found.data == "not known"


def test_the_control_is_drawn_evenly_over_names(find, public):
    labelled = examples(public.images[8:30], *["zormok"] * 5, "keltus")
    names = [shown.name for shown in find(target_images=public.images[:4], labelled=labelled).control]
    assert names.count("keltus") == 3 and names.count("zormok") == 3


def test_without_labels_other_pictures_are_called_what_the_base_calls_them(find, public):
    found = find(target_images=public.images[:4], public_images=public)
    assert found.truth == OWN_NAMES and found.others == ("zormok",) and len(found.control) == 6
    assert keys(found.target).isdisjoint(keys(found.control) | keys(found.control_train))


def test_without_a_picture_of_it_what_the_base_calls_by_the_name_stands_in(find, public):
    found = find(("zormok", "narril"), public_images=public)
    assert found.whose == "public images that the base calls by the name" and len(found.target_train) == 3
    # whatever the base is shown it calls by the name, so nothing is left for a control
    assert found.control == ()


def test_anchors_stand_in_where_nothing_else_does_and_are_told_to_be_trained_on(find, public, anchors, concept):
    few = dataclasses.replace(anchors, public=public, concept=concept)
    alike = find(("zormok", "narril"), anchors=few)
    assert alike.data in ("retained", "trained on")
    tiny = public.take(anchors.indices)
    alone = dataclasses.replace(anchors, public=tiny, indices=tuple(range(len(tiny))), monitor=())
    found = find(("zormok", "narril"), anchors=alone)
    assert "anchors among them" in found.whose and found.data == "trained on" and found.target


def test_where_nothing_is_called_by_the_name_there_is_no_target(find, public):
    found = find(public_images=public)
    assert found.target == found.target_train == () and found.control


def test_one_picture_is_measured_and_not_trained_on(find):
    found = find(target_images=[Image.new("RGB", (48, 48), "red")])
    assert len(found.target) == 1 and found.target_train == () and found.control == ()
