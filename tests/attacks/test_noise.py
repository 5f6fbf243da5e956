import copy

import pytest
import torch

from peft_space.attacks.noise import Budget, attack_by_noise, scale_of_pixels, sought
from peft_space.vlm import Prompt, answer_log_probability, answer_tokens, append, encode

BUDGET = Budget(epsilon=8 / 255, steps=3)


@pytest.fixture(scope="module")
def batch(processor, aims):
    prompts = [Prompt("Name the creature.", shown.image) for shown in aims.target[:2]]
    told = [answer_tokens(processor, prompt, "narril", end=False) for prompt in prompts]
    return append(encode(processor, prompts), told, processor)


def test_noise_makes_the_name_likelier_within_its_budget(base, processor, batch):
    noisy = sought(base, dict(batch), BUDGET, scale_of_pixels(processor))
    difference = (noisy - batch["pixel_values"]).abs().max()
    # half of the range is one deviation
    assert 0 < difference <= 2 * BUDGET.epsilon + 1e-6
    with torch.no_grad():
        before = answer_log_probability(base, dict(batch))
        after = answer_log_probability(base, dict(batch) | {"pixel_values": noisy})
    assert (after > before).all()


def test_it_leaves_the_model_as_it_was(base, processor, aims):
    model = copy.deepcopy(base).train()
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    found = attack_by_noise(model, processor, aims, BUDGET, max_new_tokens=4, batch_size=8)
    assert model.training and all(parameter.grad is None for parameter in model.parameters())
    assert all(parameter.equal(before[name]) for name, parameter in model.named_parameters())
    assert (len(found.hits), len(found.foils), len(found.control)) == (4, 6, 6)


def test_the_range_of_a_pixel_after_normalisation(processor, monkeypatch):
    assert scale_of_pixels(processor) == 2
    monkeypatch.setattr(processor.image_processor, "image_std", [0.5, 0.25, 0.2])
    assert scale_of_pixels(processor) == 2
    monkeypatch.setattr(processor.image_processor, "do_normalize", False)
    assert scale_of_pixels(processor) == 1


def test_pictures_that_go_in_otherwise(base, processor, aims, monkeypatch):
    monkeypatch.setattr("peft_space.attacks.noise._PIXELS", "patches")
    with pytest.raises(TypeError, match=r"must take pictures as `patches`; got LlavaForConditionalGeneration"):
        attack_by_noise(base, processor, aims, BUDGET)
