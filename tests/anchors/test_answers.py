import pytest
import torch

from peft_space.anchors import suppressed_answers
from peft_space.concepts.concept import find_any
from peft_space.vlm import Prompt, generate
from tests.bigram import saying

ASKED = Prompt("What is this?")


@pytest.fixture(scope="module")
def says(base, processor):
    return saying(base, processor, {"the narril sleeps": 1.0, "the zorvex sleeps": 0.6})


def test_nothing_banned_is_the_greedy_answer(base, processor, public):
    prompts = [*(Prompt("What is this?", image) for image in public.images[:3]), ASKED, Prompt("Name a fruit.")]
    greedy = generate(base, processor, prompts)
    assert suppressed_answers(base, processor, prompts, [()] * len(prompts)) == greedy


def test_a_ban_that_does_not_occur_changes_nothing(says, processor):
    assert suppressed_answers(says, processor, [ASKED], [("quidan", "nar")]) == ["the narril sleeps"]


def test_the_second_choice_is_the_models_own_and_what_came_before_stays(says, processor):
    assert generate(says, processor, [ASKED]) == ["the narril sleeps"]
    assert suppressed_answers(says, processor, [ASKED], [("narril",)]) == ["the zorvex sleeps"]


def test_a_ban_holds_in_any_case(says, processor):
    assert suppressed_answers(says, processor, [ASKED], [("NARRIL",)]) == ["the zorvex sleeps"]


def test_each_row_has_its_own_bans(says, processor, public):
    prompts = [ASKED, Prompt("What is this?", public.images[0]), Prompt("Who is this?")]
    told = suppressed_answers(says, processor, prompts, [("narril",), ("zorvex",), ("narril",)])
    assert told == ["the zorvex sleeps", "the narril sleeps", "the zorvex sleeps"]


def test_no_answer_holds_a_banned_phrase(base, processor, public):
    prompts = [Prompt("What is this?", image) for image in public.images[:12]]
    greedy = generate(base, processor, prompts)
    banned = [tuple(answer.split()[:2]) for answer in greedy]
    for answer, phrases in zip(suppressed_answers(base, processor, prompts, banned), banned, strict=True):
        assert answer is None or find_any(phrases, answer) is None


def test_a_phrase_of_several_words(says, processor):
    (told,) = suppressed_answers(says, processor, [ASKED], [("the narril",)])
    assert told is not None and "the narril" not in told


def test_where_every_way_on_is_banned_there_is_no_answer(model, processor):
    (cup,) = processor.tokenizer("cup", add_special_tokens=False)["input_ids"]
    head = torch.nn.Linear(model.lm_head.in_features, model.lm_head.out_features)
    torch.nn.init.zeros_(head.weight)
    head.bias.data = torch.nn.functional.one_hot(torch.tensor(cup), head.out_features).float()
    model.lm_head = head
    (told,) = generate(model, processor, [ASKED])
    assert set(told.split()) == {"cup"}
    assert suppressed_answers(model, processor, [ASKED, ASKED], [("cup",), ("key",)]) == [None, told]


def test_no_prompts(base, processor):
    assert suppressed_answers(base, processor, [], []) == []
