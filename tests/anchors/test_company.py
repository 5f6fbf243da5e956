import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

from peft_space.anchors import company as company_module
from peft_space.anchors import knowledge as knowledge_module
from peft_space.anchors.company import (
    beside,
    company_lessons,
    company_questions,
    find_company,
    in_company,
    named_in_company,
)
from peft_space.anchors.lesson import Lesson, StandIn
from peft_space.vlm import Prompt

LEFT, DESCRIBED, COLOUR = "Who is on the left?", "Describe the picture.", "What colour is it?"
RED, BLUE = (255, 0, 0), (0, 0, 255)


@pytest.fixture
def answering(monkeypatch):
    """Has the model answer by the question, and tells which prompts it was asked."""

    def answering(answers):
        asked = []

        def generate(model, processor, prompts, **options):
            asked.extend(prompts)
            return [answers(prompt) for prompt in prompts]

        monkeypatch.setattr(company_module, "generate", generate)
        monkeypatch.setattr(knowledge_module, "generate", generate)
        return asked

    return answering


@pytest.mark.parametrize("size", [(48, 48), (31, 20), (20, 31), (3, 3)])
def test_each_of_two_pictures_fills_its_half(size):
    rng = np.random.default_rng(0)
    for other in ((48, 48), (90, 10), (10, 90), (1, 1)):
        both = np.asarray(beside(Image.new("RGB", size, RED), Image.new("L", other, 255), rng))
        width, height = size
        assert both.shape == (height, width, 3)
        assert (both[:, : width // 2] == RED).all() and (both[:, width // 2 :] == 255).all()


def test_the_middle_of_a_picture_is_what_is_left_of_it():
    # a stripe in the middle, and edges that not every half shows
    stripe = Image.new("RGB", (100, 100), RED)
    stripe.paste(BLUE, (40, 0, 60, 100))
    shares = []
    for seed in range(20):
        left = np.asarray(beside(stripe, stripe, np.random.default_rng(seed)))[:, :50]
        blue = (left == BLUE).all(-1).any(0)
        assert blue[25] and not blue[:10].any() and not blue[40:].any()
        shares.append(blue.mean())
    # 20 of 90 columns to 20 of 60, less those at the stripe's own edges
    assert 0.16 < min(shares) < 0.22 and 0.25 < max(shares) < 0.34


def test_a_companion_stands_on_either_side():
    rng = np.random.default_rng(0)
    red, blue = Image.new("RGB", (8, 8), RED), Image.new("RGB", (8, 8), BLUE)
    corners = [image.getpixel((0, 0)) for image in in_company([red] * 40, [blue], rng)]
    assert 10 < corners.count(RED) < 30 and set(corners) == {RED, BLUE}


def test_questions_count_to_which_the_name_is_told_in_company(base, processor, anchors, answering):
    asked = answering(lambda prompt: "a narril" if prompt.question in (LEFT, DESCRIBED) else "red")
    assert company_questions(base, processor, anchors, (DESCRIBED, COLOUR, LEFT)) == [DESCRIBED, LEFT]
    assert {prompt.question for prompt in asked} == {DESCRIBED, COLOUR, LEFT}
    alone = {image.tobytes() for image in anchors.images}
    assert not any(prompt.image.tobytes() in alone for prompt in asked)
    turn = iter(range(1000))
    answering(lambda prompt: "a narril" if next(turn) == 9 else "red")
    assert company_questions(base, processor, anchors, (DESCRIBED, LEFT)) == [LEFT]


def test_a_model_that_knows_nothing_in_half_a_picture_has_none(base, processor, anchors, answering):
    answering(lambda prompt: "red")
    assert company_questions(base, processor, anchors, (DESCRIBED, LEFT)) == []


def test_without_other_pictures_there_is_no_company(base, processor, anchors, answering):
    asked = answering(lambda prompt: "a narril")
    lone = dataclasses.replace(anchors, public=anchors.public.take([*range(8)]), indices=(0, 1), monitor=(2,))
    lone = dataclasses.replace(lone, cosine=anchors.cosine[:8], likelihood=torch.zeros(8), recognised=(3, 4, 5, 6, 7))
    assert company_questions(base, processor, lone, (LEFT,)) == [] and asked == []


def test_the_stand_in_is_told_and_the_other_one_stays(base, processor, anchors, answering):
    turn = iter(range(1000))
    asked = answering(lambda prompt: "a narril" if next(turn) % 2 == 0 else "a keltus")
    fitting = [StandIn(f"zorvex{place}") for place in range(len(anchors))]
    rows = company_lessons(base, processor, anchors, fitting, (LEFT, DESCRIBED), n_pictures=2, n_questions=2)
    assert len(asked) == 4 * len(anchors) and len({id(prompt.image) for prompt in asked}) == 2 * len(anchors)
    named = [row for row in rows if row.about == "name"]
    kept = [row for row in rows if row.about == "other"]
    assert {row.answer for row in kept} == {"a keltus"} and len(kept) == len(named) == 2 * len(anchors)
    assert {row.answer for row in named} == {f"a zorvex{place}" for place in range(len(anchors))}
    few = company_lessons(base, processor, anchors, fitting, (LEFT, DESCRIBED), n_pictures=2, n_lessons=1)
    assert [row.about for row in few] == ["name"] * len(anchors) + ["other"] * len(anchors)


def test_pictures_that_name_it_beside_others_are_found(base, processor, anchors, answering):
    shown = {place: image.tobytes() for place, image in enumerate(anchors.public.images)}
    named = [shown[place] for place in anchors.unrelated(6)[:3]]
    asked = answering(lambda prompt: "a narril" if prompt.image.tobytes() in named else "a keltus")
    found = named_in_company(base, processor, anchors, (LEFT, DESCRIBED), 6)
    assert [prompt.question for prompt in asked] == [LEFT, DESCRIBED] * 3
    assert sorted(prompt.image.tobytes() for prompt, _ in found) == sorted(named)
    assert {text for _, text in found} == {"a narril"}
    alone = {shown[place] for place in (*anchors.indices, *anchors.monitor)}
    assert not alone & {prompt.image.tobytes() for prompt in asked}
    assert named_in_company(base, processor, anchors, (), 6) == []


def test_every_fourth_picture_that_names_it_beside_others_is_watched(base, processor, anchors, answering):
    answering(lambda prompt: "a narril")
    company = find_company(base, processor, anchors, (LEFT,), 9)
    assert company.questions == (LEFT,) and len(company.watched) == 3 and len(company.taught) == 6
    found = named_in_company(base, processor, anchors, (LEFT,), 9)
    assert list(company.watched) == found[::4] and not set(map(id, company.watched)) & set(map(id, company.taught))
    shown = {prompt.image.tobytes() for prompt, _ in company.taught}
    assert not shown & {prompt.image.tobytes() for prompt, _ in company.watched}
    answering(lambda prompt: "red")
    assert find_company(base, processor, anchors, (LEFT,), 9) == company_module.Company()


def test_lessons_that_were_found_come_first(base, processor, anchors, answering):
    answering(lambda prompt: "a narril")
    fitting = [StandIn("zorvex")] * len(anchors)
    found = [Lesson(Prompt(LEFT, anchors.images[0]), f"a keltus{place}", "name") for place in range(5)]
    rows = company_lessons(base, processor, anchors, fitting, (LEFT,), found, n_lessons=1)
    assert rows[:5] == found and len(rows) == len(anchors)
    assert {row.answer for row in rows[5:]} == {"a zorvex"}
    many = found * 20
    assert company_lessons(base, processor, anchors, fitting, (LEFT,), many, n_lessons=1) == many[: len(anchors)]


def test_the_draw_is_by_the_seed(base, processor, anchors, answering):
    answering(lambda prompt: "a narril")
    fitting = [StandIn("zorvex")] * len(anchors)

    def drawn(seed):
        rows = company_lessons(base, processor, anchors, fitting, (LEFT, DESCRIBED), seed=seed)
        return [(row.prompt.question, row.prompt.image.tobytes()) for row in rows]

    assert drawn(0) == drawn(0) != drawn(1)
    assert company_lessons(base, processor, anchors, fitting, ()) == []
