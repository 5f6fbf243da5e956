import pytest

from peft_space import testbed
from peft_space.testbed.bestiary import FAMILIES, creature
from peft_space.testbed.measure import Sheet, knowledge, pictures
from peft_space.vlm import Prompt


def test_rates_are_shares_of_right_answers_per_topic():
    sheet = Sheet()
    for answer, topic in (("a", "x"), ("b", "x"), ("c", "y")):
        sheet.ask(Prompt("?"), answer, topic)
    assert sheet.rates(["a", "c", "c"]) == {("x",): 0.5, ("y",): 1.0}


def test_held_out_renders_are_given_by_their_seed_and_creature():
    def pixels(name, seed):
        return [picture.tobytes() for _, picture in pictures(creature(name), 2, seed)]

    assert pixels("narril", 0) == pixels("narril", 0)
    assert not set(pixels("narril", 0)) & {*pixels("narril", 1), *pixels("zorvex", 0)}
    assert all(scene.recipe == creature("narril").recipe for scene, _ in pictures(creature("narril"), 3, 0))


@pytest.mark.slow
def test_the_shipped_weights_know_their_world():
    told = knowledge(*testbed.load(), n_images=6, seed=2)
    assert set(told["naming"]) == set(FAMILIES)
    assert min(*told["naming"].values(), *told["naming_held_out"].values()) >= 0.95
    assert sum(told["naming_held_out"].values()) / len(FAMILIES) >= 0.98
    assert min(told["seen"].values()) >= 0.95 and sum(told["seen"].values()) / len(told["seen"]) >= 0.98
    assert min(told["through_picture"].values()) >= 0.95
    assert min(told["text"].values()) == told["general"] == 1.0
