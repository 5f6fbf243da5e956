import pytest
import torch
from PIL import Image

from peft_space import Anchors, Concept, PublicImages
from peft_space.evaluation.seen import Seen, anchors_of

PICTURES = tuple(Image.new("RGB", (2, 2), colour) for colour in ("red", "green", "blue", "white"))
STRANGER = Image.new("RGB", (2, 2), "black")


@pytest.fixture
def chosen():
    public = PublicImages((*PICTURES, PICTURES[0].copy()), ("a", "b", "c", "d", "e"))
    scores = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.1])
    return Anchors(Concept("owl"), public, (0,), (1,), scores, -scores, 0.1)


@pytest.mark.parametrize(
    ("pictures", "mark"),
    [
        ([PICTURES[0]], "trained on"),
        ([PICTURES[1]], "stopped on"),
        ([PICTURES[2]], "retained"),
        ([STRANGER], "held out"),
        ([], "held out"),
        ([STRANGER, PICTURES[2]], "retained"),
        ([PICTURES[2], PICTURES[1]], "stopped on"),
        ([STRANGER, PICTURES[1], PICTURES[0].copy()], "trained on"),
    ],
)
def test_what_most_was_done_with_any_of_them(chosen, pictures, mark):
    assert Seen(chosen).mark(pictures) == mark


def test_without_anchors_nobody_can_say():
    assert Seen(None).mark([PICTURES[0]]) == "not known"


def test_anchors_are_found_beside_the_adapter(chosen, tmp_path):
    assert anchors_of(tmp_path, chosen.concept, chosen.public) is None
    chosen.write_scores(tmp_path / "anchors.csv")
    found = anchors_of(tmp_path, chosen.concept, chosen.public)
    assert found.indices == chosen.indices and found.monitor == chosen.monitor and found.public is chosen.public
    assert anchors_of(tmp_path, chosen.concept, None) is None
    assert anchors_of(tmp_path, chosen.concept, PublicImages(PICTURES[:1], ("z",))) is None


def test_a_list_of_anchors_alone_does_not_say_what_was_the_monitor(chosen, tmp_path):
    (tmp_path / "anchors.csv").write_text("dataset,split,id,index\njane/birds,train,a,0\n")
    assert anchors_of(tmp_path, chosen.concept, chosen.public) is None
