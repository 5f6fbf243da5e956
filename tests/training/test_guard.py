import copy
import math
from dataclasses import replace

import pytest
import torch
from peft import get_peft_model
from peft.tuners.lora import LoraLayer

from peft_space import SpaceConfig, SpaceTrainer, SpaceTrainingArguments, load_base
from peft_space.anchors import Lesson
from peft_space.training import Lessons, concept_directions
from peft_space.training.guard import RelearningGuard
from peft_space.vlm import Prompt, answer_log_probability, encode


@pytest.fixture
def adapted(model):
    return get_peft_model(model, SpaceConfig(r=4, lora_alpha=4)).train()


@pytest.fixture(scope="module")
def lessons(anchors):
    return [Lesson(Prompt("Name it.", image), anchors.concept.name, "name") for image in anchors.images]


def layers(model):
    return [(name, one) for name, one in model.named_modules() if isinstance(one, LoraLayer)]


def said(model, processor, lessons):
    batch = encode(processor, [row.prompt for row in lessons], [row.answer for row in lessons])
    return float(answer_log_probability(model, batch).detach().mean())


def updates(guard):
    return {layer: guard._outputs[layer] @ guard._inputs[layer] for layer in guard._layers}


def test_the_step_makes_the_name_likelier_and_is_gone_afterwards(adapted, processor, lessons):
    guard = RelearningGuard(adapted, processor, lessons, 0.01)
    before = said(adapted, processor, lessons)
    guard.aim(0)
    assert said(adapted, processor, lessons) == before
    with guard.ahead():
        there = said(adapted, processor, lessons)
    assert there > before + 1e-3
    assert said(adapted, processor, lessons) == before
    assert not any(layer._forward_hooks for layer in guard._layers)
    assert all(parameter.grad is None for parameter in adapted.parameters())


def test_its_length_is_a_share_of_the_weights_norm(adapted, processor, lessons):
    guard = RelearningGuard(adapted, processor, lessons, 0.01)
    weights = math.hypot(*(float(one.get_base_layer().weight.norm()) for _, one in layers(adapted)))
    assert guard.length == pytest.approx(0.01 * weights, rel=0.05)
    guard.aim(0)
    moved = updates(guard)
    assert math.hypot(*(float(one.norm()) for one in moved.values())) == pytest.approx(guard.length, rel=1e-4)
    assert all(torch.linalg.matrix_rank(one) <= 16 for one in moved.values())


def test_it_follows_nearly_all_of_the_gradient(adapted, processor, lessons):
    guard = RelearningGuard(adapted, processor, lessons[:4], 0.01)
    weights = [layer.weight.requires_grad_(True) for layer in guard._layers]
    batch = encode(processor, [row.prompt for row in lessons[:4]], [row.answer for row in lessons[:4]])
    slopes = torch.autograd.grad(answer_log_probability(adapted, batch).mean(), weights)
    guard.aim(0)
    moved = list(updates(guard).values())
    along = sum(float((a * b).sum()) for a, b in zip(moved, slopes, strict=True))
    lengths = math.hypot(*(float(a.norm()) for a in moved)) * math.hypot(*(float(b.norm()) for b in slopes))
    assert along / lengths > 0.6


@pytest.mark.parametrize("bits", ["load_in_4bit", "load_in_8bit"])
def test_a_base_in_few_bits_is_moved_as_its_weights_say(base, base_folder, processor, lessons, bits):
    few, _ = load_base(base_folder, device="cpu", **{bits: True})
    guard = RelearningGuard(get_peft_model(few, SpaceConfig(r=4)).train(), processor, lessons, 0.01)
    whole = RelearningGuard(get_peft_model(copy.deepcopy(base), SpaceConfig(r=4)).train(), processor, lessons, 0.01)
    assert guard.length == pytest.approx(whole.length, rel=0.05)
    before = said(guard.model, processor, lessons)
    guard.aim(0)
    with guard.ahead():
        assert said(guard.model, processor, lessons) > before + 1e-3


def test_small_batches_make_the_same_step(adapted, processor, lessons):
    whole = RelearningGuard(adapted, processor, lessons, 0.01)
    small = RelearningGuard(adapted, processor, lessons, 0.01, at_a_time=3)
    whole.aim(2)
    small.aim(2)
    # the mixtures are those of the first batch's inputs
    cosines = [
        float(torch.cosine_similarity(a.flatten(), b.flatten(), dim=0))
        for a, b in zip(updates(whole).values(), updates(small).values(), strict=True)
    ]
    assert sum(cosines) / len(cosines) > 0.5


def test_the_draw_is_by_seed_and_step(adapted, processor, lessons):
    def step(seed, number):
        guard = RelearningGuard(adapted, processor, lessons, 0.01, seed=seed)
        guard.aim(number)
        return torch.cat([one.flatten() for one in updates(guard).values()])

    assert torch.equal(step(0, 0), step(0, 0))
    assert not torch.allclose(step(0, 0), step(0, 1)) and not torch.allclose(step(0, 0), step(1, 0))


def test_where_nothing_can_be_gained_nothing_moves(adapted, processor, lessons):
    guard = RelearningGuard(adapted, processor, lessons, 0.01)
    with torch.no_grad():
        adapted.get_output_embeddings().weight.mul_(float("nan"))
    guard.aim(0)
    assert all(not one.any() for one in updates(guard).values())
    none = RelearningGuard(adapted, processor, lessons, 0.0)
    assert none.length == 0


def test_only_layers_whose_adapter_is_trained_are_moved(adapted, processor, lessons):
    guard = RelearningGuard(adapted, processor, lessons, 0.01)
    assert len(guard._layers) == len(layers(adapted))
    for _, layer in layers(adapted)[1:]:
        layer.requires_grad_(False)
    few = RelearningGuard(adapted, processor, lessons, 0.01)
    assert few._layers == guard._layers[:1] and few.length < guard.length


@pytest.mark.parametrize("at_a_time", [4, 2])
def test_each_training_step_is_taken_beyond_the_attackers(adapted, processor, lessons, at_a_time, monkeypatch):
    aimed, passed = [], []
    aim, loss = RelearningGuard.aim, SpaceTrainer.compute_loss

    def aiming(guard, step):
        aim(guard, step)
        aimed.append(step)

    def losing(trainer, *args, **kwargs):
        hooked = all(layer._forward_hooks for layer in trainer.guard._layers)
        passed.append((aimed[-1], hooked, any(bool(b.any()) for b in trainer.guard._outputs.values())))
        return loss(trainer, *args, **kwargs)

    monkeypatch.setattr(RelearningGuard, "aim", aiming)
    monkeypatch.setattr(SpaceTrainer, "compute_loss", losing)
    args = SpaceTrainingArguments(max_steps=3, per_device_train_batch_size=4, relearning_radius=0.01, dose_every=0)
    args = args.in_small_batches(at_a_time)
    rows = [replace(lesson, answer="a bird") for lesson in lessons]
    directions = concept_directions(adapted, processor, ["narril"])
    trainer = SpaceTrainer(adapted, args, Lessons(rows), processor, directions, relearned=lessons)
    trainer.train()
    # a step in small batches is taken from one and the same place
    assert aimed == [0, 1, 2]
    assert passed == [(step, True, True) for step in (0, 1, 2) for _ in range(4 // at_a_time)]
    assert not any(layer._forward_hooks for layer in trainer.guard._layers)
    assert any(parameter.any() for name, parameter in adapted.named_parameters() if "lora_B" in name)


def test_without_a_radius_or_lessons_there_is_no_guard(adapted, processor, lessons):
    directions = concept_directions(adapted, processor, ["narril"])
    for radius, relearned in ((0.0, lessons), (0.01, [])):
        args = SpaceTrainingArguments(max_steps=1, relearning_radius=radius)
        trainer = SpaceTrainer(adapted, args, Lessons(lessons), processor, directions, relearned=relearned)
        assert trainer.guard is None
    with pytest.raises(ValueError, match="`relearning_radius` must be at least 0; got -1"):
        SpaceTrainingArguments(relearning_radius=-1)
