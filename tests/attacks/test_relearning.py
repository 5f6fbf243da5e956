import copy
import dataclasses
from itertools import pairwise

import pytest

from peft_space.attacks.relearning import Budget, Curve, _Lessons, relearn, strongest, with_enough
from peft_space.attacks.scores import CONTROL, FOILS, HITS, Row, Scores

SMALL = Budget(n_images=(2, 0), steps=(1, 3), batch_size=4, rank=2)


def scores(hit, control=1.0, foil=0.0):
    return Scores.of([Row(HITS, 0, hit), Row(FOILS, 1, foil), Row(CONTROL, 1, control)])


def curve(*hits, control=1.0, rate=1.0):
    return Curve(rate, (0, 1, 5), tuple(scores(hit, 1.0 if n == 0 else control) for n, hit in enumerate(hits)))


def test_the_area_is_the_mean_over_steps():
    # 0 to 1 in the first step, and 1 over four more
    assert curve(0, 1, 1).area().hits == {0: pytest.approx((0.5 + 4) / 5)}
    assert curve(1, 1, 1).area().hits == {0: pytest.approx(1)}


def test_the_strongest_is_of_those_whose_control_lives():
    weak, strong, wild = curve(0, 0, 0.5), curve(0, 1, 1, control=0.9), curve(0, 1, 1, control=0.2)
    assert strongest([weak, wild, strong]) is strong
    assert strongest([wild, weak]) is weak
    assert strongest([curve(0, 1, 1, control=0.1), wild]) is wild


@pytest.mark.parametrize(("n_images", "own"), [(1, 1), (3, 3), (0, 0)])
def test_half_of_a_batch_is_of_the_concept(aims, n_images, own):
    lessons = _Lessons(aims, n_images, 8, seed=0)
    rows = [row for _ in range(6) for row in lessons.batch()]
    shown = {id(prompt.image) for prompt, name in rows if name == "narril"}
    assert len(shown) == own and sum(name == "narril" for _, name in rows) == (24 if own else 0)
    held = {id(one.image): one.name for one in (*aims.target_train, *aims.control_train)}
    assert all(held[id(prompt.image)] == name for prompt, name in rows)
    assert {prompt.question for prompt, _ in rows} <= set(aims.concept.questions)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_it_asks_before_and_at_each_checkpoint_and_trains_in_between(base, processor, aims, method):
    seen = []

    def ask(model):
        assert not model.training
        seen.append({n: p.detach().clone() for n, p in model.named_parameters()})
        return scores(len(seen) / 10)

    found = relearn(
        copy.deepcopy(base),
        processor,
        aims,
        ask,
        method=method,
        n_images=2,
        learning_rate=1e-2,
        budget=SMALL,
        seed=0,
    )
    assert found.steps == (0, 1, 3) and [s.hits[0] for s in found.scores] == [0.1, 0.2, 0.3]
    for first, then in pairwise(seen):
        moved = {name for name in first if not first[name].equal(then[name])}
        assert moved and all("lora_" in name for name in moved) is (method == "lora")


def test_what_there_are_too_few_pictures_for_is_left_out_and_told(aims):
    left, short = with_enough(dataclasses.replace(SMALL, n_images=(1, 4, 10, 0)), aims)
    assert left.n_images == (1, 4, 0) and list(short) == [10] and "the attacker has 4" in short[10]


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"steps": (5, 1)}, "`steps` must be rising numbers of steps from 1"),
        ({"steps": ()}, "`steps` must be rising"),
        ({"learning_rates": (("ia3", (1e-3,)),)}, "`learning_rates` must give some rates for lora or full"),
        ({"learning_rates": (("lora", ()),)}, "`learning_rates` must give"),
        ({"n_images": (-1,)}, "`n_images` must be 0 or more"),
        ({"batch_size": 1}, "`batch_size` 2 or more"),
    ],
)
def test_budgets_that_are_none(wrong, told):
    with pytest.raises(ValueError, match=told):
        Budget(**wrong)
