import copy
import dataclasses
import functools

import pytest
import torch
from peft import get_peft_model

from peft_space import SpaceConfig, testbed
from peft_space.attacks import ATTACKS, NoiseBudget, RelearningBudget, audit_erasure, kinds
from peft_space.attacks.outcome import NOT_JUDGED, RECOVERED, ROBUST, TOLD
from peft_space.attacks.sides import Sides
from peft_space.attacks.wording import wordings
from peft_space.evaluation import EvaluatedSet, Example
from peft_space.testbed.bestiary import BY_NAME, siblings
from peft_space.testbed.measure import pictures
from peft_space.vlm import Prompt, answer_log_probability, encode
from tests.adapters import shake, space

NAME = "zorvex"
SMALL = {
    "relearning_budget": RelearningBudget(
        n_images=(1, 0), steps=(1,), batch_size=4, rank=2, learning_rates=(("lora", (1e-3,)), ("full", (1e-4,)))
    ),
    "noise_budget": NoiseBudget(steps=1),
    "paraphrases": ("Which one is it?",),
    "strengths": (0.0,),
    "n_images": 4,
    "n_train": 2,
    "n_bootstrap": 100,
    "max_new_tokens": 6,
    "progress": False,
}
audit = functools.partial(audit_erasure, **SMALL)


def labelled(images, *names):
    rows = (Example("Name it.", names[n % len(names)], image, names[n % len(names)]) for n, image in enumerate(images))
    return EvaluatedSet(tuple(rows))


@pytest.fixture(scope="module")
def erased(base):
    return shake(space(copy.deepcopy(base), subspace=False))


def test_every_attack_is_run_and_leaves_the_models_as_they_were(base, erased, processor, concept, public, monkeypatch):
    # all of them are asked of made-up answers in test_wording.py
    few = [wording for wording in wordings() if wording.key in ("language_german", "yes_or_no_1", "in_context")]
    monkeypatch.setattr(kinds, "wordings", lambda paraphrases: few)
    before = {name: tensor.clone() for name, tensor in erased.state_dict().items()}
    report = audit(
        erased,
        processor,
        concept,
        oracle=base,
        target_images=public.images[:6],
        labelled=labelled(public.images[8:40], "zormok", "keltus"),
    )
    assert {outcome.kind for outcome in report.outcomes} | {key.split("/")[0] for key in report.unknown} == set(
        ATTACKS
    )
    assert {outcome.kind for outcome in report.outcomes} >= set(ATTACKS) - {"text"}
    assert report.sides == ("base", "erased", "oracle") and set(report.seconds) >= set(ATTACKS)
    assert all(set(outcome.readings) == set(report.sides) for outcome in report.outcomes)
    assert all(before[name].equal(tensor) for name, tensor in erased.state_dict().items())
    # a random model names nothing in a picture, so no attack by its name says anything
    named = [outcome for outcome in report.outcomes if outcome.measure == "advantage" and outcome.kind != "text"]
    assert {outcome.verdict for outcome in named} == {NOT_JUDGED}


def test_without_anything_to_aim_at_it_says_what_is_missing(erased, processor, concept):
    report = audit(erased, processor, concept)
    assert report.outcomes == () and report.unattacked is None
    assert {key.split("/")[0] for key in report.unknown} == set(ATTACKS) and "pass `target_images`" in report.unknown[
        "relearning"
    ]
    assert "pass `others`" in report.unknown["text"]


def test_without_other_concepts_there_is_no_control(erased, processor, concept, public):
    report = audit(erased, processor, concept, target_images=public.images[:4], attacks=["pictures", "relearning"])
    assert report.outcomes == () and all("other concepts" in why for why in report.unknown.values())
    assert report.unattacked.verdict == NOT_JUDGED and "no control" in report.unattacked.why


def test_what_a_model_can_not_take_is_told(erased, processor, concept, public, monkeypatch):
    def fails(*args, **options):
        raise error

    error = TypeError("`model` must take pictures as `pixel_values`")
    monkeypatch.setattr(kinds.noise, "attack_by_noise", fails)
    monkeypatch.setattr(kinds.probing, "probe", fails)
    plain = kinds.Bench.ask_each
    monkeypatch.setattr(kinds.Bench, "ask_each", lambda bench, asked: (fails if bench.before else plain)(bench, asked))
    monkeypatch.setattr(Sides, "few_bits", True)
    several, one = ([w for w in wordings() if w.key == key] for key in ("in_context", "language_german"))
    monkeypatch.setattr(kinds, "wordings", lambda paraphrases: several)
    aim = {"target_images": public.images[:20], "labelled": labelled(public.images[20:40], "zormok", "keltus")}
    ran = ["noise", "probe", "relearning", "quantisation", "wording"]
    told = audit(erased, processor, concept, attacks=ran, **aim).unknown
    assert told["noise"] == told["probe"] == str(error)
    assert "16 or 32 bits" in told["relearning"] and told["quantisation"] == told["relearning"]
    assert told["wording/in_context"] == "the model takes no prompt with several pictures (TypeError)"
    # of a prompt with one picture it is no limit of the model
    monkeypatch.setattr(kinds, "wordings", lambda paraphrases: one)
    with pytest.raises(TypeError, match="pixel_values"):
        audit(erased, processor, concept, attacks=["wording"], **aim)


def test_what_is_merged_for_good_can_not_be_taken_off(base, erased, processor, concept, public):
    aim = {"target_images": public.images[:4], "labelled": labelled(public.images[8:16], "zormok", "keltus")}
    bare = audit(base, processor, concept, base=base, attacks="removal", **aim)
    assert "no adapter that could be taken off: it is merged" in bare.unknown["removal"]
    merged = copy.deepcopy(erased)
    merged.merge_adapter()
    # asking the base has unmerged it
    assert [outcome.key for outcome in audit(merged, processor, concept, attacks="removal", **aim).outcomes] == [
        "removal/0"
    ]


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"attacks": "pruning"}, "`attacks` must be \"all\" or some of relearning, .*; got 'pruning'"),
        ({"attacks": []}, '`attacks` must be "all"'),
        ({"n_images": 0}, "`n_images` must be at least 1; got 0"),
        ({"strengths": (1.0,)}, "`strengths` must be from 0 to less than 1"),
        ({"base": torch.nn.Linear(2, 2)}, "`base` must be given for a model without adapters, and only then"),
    ],
)
def test_arguments_that_are_out_of_range(erased, processor, concept, wrong, told):
    with pytest.raises(ValueError, match=told):
        audit(erased, processor, concept, **wrong)


@pytest.fixture(scope="module")
def world():
    """The shipped model, its pictures of a creature that hyper-parameters were chosen on, and of others."""
    model, processor = testbed.load()
    others = [*siblings(NAME), *(BY_NAME[name] for name in ("narril", "kelzil", "sebgup"))]
    rows = [(one.name, image) for one in others for _, image in pictures(one, 8, 0)]
    target = [image for _, image in pictures(BY_NAME[NAME], 18, 0)]
    known = tuple(Example("Name it.", name, image, name) for name, image in rows)
    return model, processor, testbed.concept(NAME), target, EvaluatedSet(known)


@pytest.fixture(scope="module")
def suppressed(world):
    """The name is trained away in a few steps, on its own pictures: no erasure that would be worth anything."""
    model, processor, concept, _, known = world
    torch.manual_seed(0)
    hidden = get_peft_model(copy.deepcopy(model), SpaceConfig(r=8, lora_alpha=8))
    parameters = [parameter for parameter in hidden.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=5e-3)
    own = [(image, siblings(NAME)[0].name) for _, image in pictures(BY_NAME[NAME], 12, 1)]
    rest = [(example.image, example.answer) for example in known][:24]
    for step in range(12):
        some = [*own, *(rest[place] for place in range(step % 2, 24, 2))]
        question = concept.questions[step % len(concept.questions)]
        batch = encode(processor, [Prompt(question, image) for image, _ in some], [name for _, name in some])
        loss = -answer_log_probability(hidden, batch).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return hidden.eval()


KNOWN = {
    "n_images": 12,
    "n_train": 6,
    "attacks": ("relearning", "pictures", "removal"),
    "relearning_budget": RelearningBudget(n_images=(5,), steps=(4, 12, 24), learning_rates=(("lora", (5e-3,)),)),
    "max_new_tokens": 6,
}


@pytest.mark.slow
def test_a_name_that_was_only_suppressed_comes_back(world, suppressed):
    _, processor, concept, target, known = world
    report = audit(suppressed, processor, concept, target_images=target, labelled=known, **KNOWN)
    unattacked = report.unattacked.readings
    assert unattacked["base"].told.value > 0.9 > 0.2 > unattacked["erased"].told.value
    relearned = report["relearning/lora_5"]
    assert relearned.verdict == RECOVERED and relearned.readings["erased"].recovery.low > 0
    first, *_, last = (point["told"] for point in relearned.curves["erased"])
    assert last > 0.6 > 0.3 > first
    removed = report["removal/0"]
    assert removed.verdict == RECOVERED
    assert removed.readings["erased"].told.value == pytest.approx(removed.readings["base"].told.value)
    assert report["pictures/flip"].verdict in (ROBUST, "not sure")


@pytest.mark.slow
def test_a_broken_model_is_not_taken_for_a_robust_one(world):
    model, processor, concept, target, known = world
    broken = copy.deepcopy(model)
    torch.manual_seed(0)
    with torch.no_grad():
        for layer in broken.model.language_model.layers:
            layer.mlp.down_proj.weight.normal_(std=0.2)
    options = KNOWN | {"attacks": ("quantisation", "pictures", "membership")}
    report = audit(broken, processor, concept, base=model, target_images=target, labelled=known, **options)
    assert report.unattacked.readings["erased"].told.value < 0.2
    # noise may lean to the name by chance, which is told; what can be asked for names has a control that fails
    assert report.outcomes and ROBUST not in {outcome.verdict for outcome in report.outcomes}
    assert {one.verdict for one in report.outcomes if one.kind != "membership"} == {NOT_JUDGED}


@pytest.mark.slow
def test_a_model_that_was_not_erased_is_not_robust(world):
    model, processor, concept, target, known = world
    options = KNOWN | {"attacks": ("pictures", "wording", "membership")}
    report = audit(
        copy.deepcopy(model), processor, concept, base=model, target_images=target, labelled=known, **options
    )
    assert report["pictures/flip"].verdict == TOLD and report["membership/loss"].verdict == TOLD
    assert report["wording/choice_2"].readings["base"].told.value > 0.5
    assert not [outcome.key for outcome in report.outcomes if outcome.verdict == ROBUST]


def test_settings_tell_the_budgets(erased, processor, concept, public):
    report = audit(erased, processor, concept, target_images=public.images[:4], attacks="removal")
    assert report.settings["relearning"]["steps"] == (1,) and report.settings["attacks"] == ["removal"]
    assert dataclasses.asdict(report)["settings"]["noise"]["steps"] == 1
