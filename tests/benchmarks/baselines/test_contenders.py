import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from peft_space import SpaceTrainingArguments, testbed
from peft_space._peft import lora_layers
from peft_space.anchors import concept_embedding
from peft_space.concepts.images import content_key
from peft_space.testbed.bestiary import creature
from peft_space.testbed.measure import pictures
from peft_space.tuner import default_targets
from peft_space.vlm import base_of
from tests.benchmarks.baselines import cases, contenders, projector, space, training
from tests.benchmarks.baselines.cases import Case


def test_every_contender_has_as_many_trials():
    every = contenders.contenders()
    assert {len(one.trials) for one in every.values()} == {12}
    for one in every.values():
        assert sorted(map(str, one.trials)) == sorted(str(setting) for group in one.groups() for setting in group)
    args = SpaceTrainingArguments()
    default = {"learning_rate": args.learning_rate, "dose_share": args.dose_share}
    assert default in every["SPACE"].trials
    assert sum(one.sees_target for one in every.values()) == 8


@pytest.mark.parametrize("seed", [0, 2])
def test_no_picture_is_one_of_the_exam_or_of_the_public_set(seed):
    target = "narril"
    given = {content_key(one.image) for one in cases.target_prompts(target, seed)}
    assert len(given) == cases.N_TARGET
    sat = {content_key(picture) for _, picture in pictures(creature(target), 48, seed)}
    public = {content_key(image) for image in testbed.public_images(target, 200, seed).images}
    others = {content_key(one.image) for one in cases.retain_prompts(target, seed) if one.image is not None}
    held_out = {content_key(p) for other in ("zormok", "nartus") for _, p in pictures(creature(other), 24, seed)}
    assert not given & (sat | public | others) and not others & (sat | public | held_out)
    assert len(others) == cases.N_RETAIN


def test_refusals_and_suppressed_answers_know_what_they_contradict():
    n = len(cases.target_prompts("narril", 0))
    unnamed = [None if place % 2 else "zormok" for place in range(n)]
    case = Case("narril", 0, {}, ["narril"] * n, unnamed, [], None)
    assert {one.answer for one in case.refused()} == set(cases.REFUSALS)
    assert len(case.renamed()) == n // 2 and {(one.answer, one.said) for one in case.renamed()} == {
        ("zormok", "narril")
    }


@pytest.mark.parametrize("seed", range(5))
def test_the_projector_writes_nothing_along_the_direction_and_all_else_as_before(seed):
    torch.manual_seed(seed)
    layer, x = nn.Linear(12, 8), torch.randn(20, 12)
    d = F.normalize(torch.randn(8), dim=0)
    before = layer(x)

    def after(strength):
        weight, bias = (projector.without_direction(part, d, strength) for part in (layer.weight, layer.bias))
        return F.linear(x, weight, bias)

    assert (after(1.0) @ d).abs().max() < 1e-5 < (before @ d).abs().max()
    for strength in (0.5, 1.0, 3.0):
        along = torch.outer(before @ d, d)
        assert torch.allclose(after(strength), before - strength * along, atol=1e-5)
    assert torch.allclose(after(2.0) @ d, -(before @ d), atol=1e-5)


def test_in_a_model_the_name_goes_out_of_the_projected_pictures(base, model, processor, concept):
    direction = concept_embedding(base, processor, concept)
    pixels = torch.randn(3, 3, 48, 48)
    projector.remove_text_direction(model, processor, concept, 1.0)
    with torch.no_grad():
        before, after = (torch.stack(tuple(m.get_image_features(pixels).pooler_output)) for m in (base, model))
    assert (after @ direction).abs().max() < 1e-4 < (before @ direction).abs().max()
    assert torch.allclose(after, before - (before @ direction)[..., None] * direction, atol=1e-4)


@pytest.fixture
def case(small_world, monkeypatch, tmp_path):
    monkeypatch.setattr(cases, "N_TARGET", 2)
    monkeypatch.setattr(cases, "N_RETAIN", 3)
    row = cases.prepare("narril", 0, 1, tmp_path)
    row.pop("images")
    return Case(**row, folder=tmp_path)


def test_a_case_has_an_answer_for_every_prompt(case, base, processor):
    assert len(case.forget()) == len(cases.target_prompts("narril", 0)) == len(case.refused())
    assert len(case.retain()) == len(cases.retain_prompts("narril", 0))
    assert {one.prompt.image is None for one in case.retain()} == {True, False}
    assert 0 <= case.before["retain_near"] <= 1 and len(case.anchors) > 2


def test_a_negated_task_vector_is_the_learned_one_times_minus_the_scale(case, model, processor, monkeypatch):
    monkeypatch.setattr(contenders, "NEGATION_STEPS", 2)
    one = contenders.contenders()["negated task vector"]
    settings = [{"learning_rate": 1e-2, "scale": scale} for scale in (-1.0, 0.5, 2.0)]
    updates = []
    for setting, negated, _ in one.models(model, processor, case, settings):
        layers = dict(lora_layers(base_of(negated)))
        updates.append({name: layer.get_delta_weight("default").detach() for name, layer in layers.items()})
        assert setting in settings
    learned, half, twice = updates
    assert max(float(update.abs().max()) for update in learned.values()) > 1e-4
    for name, update in learned.items():
        assert torch.allclose(half[name], -0.5 * update, atol=1e-7)
        assert torch.allclose(twice[name], -2 * update, atol=1e-7)


def test_removals_do_not_add_up(case, model, processor):
    layer = projector.last_of_projector(model)
    whole = layer.weight.detach().clone()
    one = contenders.contenders()["projector removal"]
    (_, _, _), (_, removed, steps) = one.models(model, processor, case, [{"strength": 3.0}, {"strength": 1.0}])
    direction = concept_embedding(model, processor, case.concept)
    expected = projector.without_direction(whole, direction, 1.0)
    assert removed is model and steps == 0 and torch.allclose(layer.weight, expected, atol=1e-6)


def test_a_smaller_dose_is_an_earlier_place_in_the_same_training(case, model, processor, monkeypatch):
    # a share that is always met and one that never is
    easy, hard = -100.0, 100.0

    def few(*, dose_share, **given):
        # a decay would fade out sooner where fewer steps are the most
        args = SpaceTrainingArguments(dose_every=1, dose_slack=100.0, weight_decay=0.0, **given)
        # no user may ask for less than nothing
        args.dose_share = dose_share
        return args

    monkeypatch.setattr(space, "SpaceTrainingArguments", few)
    monkeypatch.setattr(contenders, "STEPS", (4,))
    one, other = contenders.contenders()["SPACE"], copy.deepcopy(model)
    rate = {"learning_rate": 1e-2}
    seen = {}
    for setting, erased, took in one.models(model, processor, case, [rate | {"dose_share": d} for d in (easy, hard)]):
        seen[setting["dose_share"]] = took, space.weights(erased)
    assert [took for took, _ in seen.values()] == [2, 4]
    # what baselines that see the target are trained with
    assert erased.peft_config["default"].r == erased.peft_config["default"].lora_alpha == training.RANK
    assert {name for name, _ in lora_layers(erased.get_base_model())} == set(default_targets(model))
    monkeypatch.setattr(contenders, "STEPS", (2,))
    ((_, short, took),) = one.models(other, processor, case, [rate | {"dose_share": hard}])
    assert took == 2
    _, early = seen[easy]
    _, late = seen[hard]
    for name, (a, b) in space.weights(short).items():
        assert torch.allclose(b @ a, early[name][1] @ early[name][0], atol=1e-6)
    assert any(not torch.equal(late[name][1], b) for name, (_, b) in early.items())
    space.put(short, late, -2.0)
    assert all(torch.equal(b, -2 * late[name][1]) for name, (_, b) in space.weights(short).items())
