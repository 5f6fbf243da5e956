import copy
import functools
import math

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.nn import functional as F

from peft_space import SpaceTrainingArguments
from peft_space.testbed.bestiary import creature, random_scene
from peft_space.testbed.drawing import draw
from peft_space.tuner import default_targets
from peft_space.vlm import Prompt, answer_log_probability, encode
from tests.benchmarks.baselines import methods, training
from tests.benchmarks.baselines.methods import DATA_DEPENDENT, Batch, Method
from tests.benchmarks.baselines.told import Taught, collate, contradicted, in_order, read


def pictured(name, question, answer, said, n=4):
    rng = np.random.default_rng([3, n])
    images = [draw(random_scene(rng, creature(name).recipe), rng) for _ in range(n)]
    return [Taught(Prompt(question, image), answer, said) for image in images]


def in_text(answer="cold"):
    return [Taught(Prompt(f"What is the opposite of {word}?"), answer, answer) for word in ("hot", "big", "day", "up")]


@pytest.fixture(scope="module")
def forget():
    return pictured("narril", "What is this creature called?", "narril", "narril")


@pytest.fixture(scope="module")
def retain():
    return pictured("zormok", "What colour is it?", "blue", "blue", 6) + in_text()


@pytest.fixture
def batch(model, processor, concept, forget, retain):
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=default_targets(model)))
    direction = F.normalize(torch.rand(192, generator=torch.Generator().manual_seed(0)), dim=0)
    return Batch(adapted, processor, concept, forget, retain[::-1], 0, direction)


def test_what_is_told_is_what_the_model_says(base, processor, forget, retain):
    taught = in_order([*in_text("a cold and long answer"), *forget, *retain])
    told = read(base, collate(processor, taught), 0)
    for number in (0, len(taught) - 1):
        one = taught[number]
        alone = encode(processor, [one.prompt], [one.answer])
        tokens = int((alone["labels"] >= 0).sum())
        assert told.lengths[number] == tokens
        expected = answer_log_probability(base, dict(alone), per_token=False)
        assert torch.allclose(told.log_p[number], expected[0], atol=1e-4)
    assert len(told.ids) == len(told.states) == len(contradicted(processor, taught))


def test_the_states_are_those_that_the_tokens_are_predicted_from(base, processor, forget, retain):
    told = read(base, collate(processor, forget), len(base.model.language_model.layers) - 1)
    again = base.lm_head(base.model.language_model.norm(told.states))
    assert torch.allclose(again, told.logits, atol=1e-4)


def test_what_contradicts_the_base_model_is_the_name_alone(processor):
    said, answer = "a red narril in the forest", "a red zormok in the forest"
    (one,) = pictured("narril", "Describe the picture.", answer, said, 1)
    mask = contradicted(processor, [one])
    told = read_ids(processor, one)
    assert processor.tokenizer.decode(told[mask]).strip() == "zormok"
    assert not contradicted(processor, [Taught(one.prompt, said, said)]).any()


def read_ids(processor, one):
    labels = encode(processor, [one.prompt], [one.answer])["labels"]
    return labels[labels >= 0]


def test_the_name_is_written_with_these_tokens(processor, concept):
    ids = methods.name_tokens(processor, concept)
    (one,) = pictured("narril", "Describe the picture.", "a red narril", "", 1)
    assert set(processor.tokenizer(" narril", add_special_tokens=False).input_ids) == set(ids.tolist())
    assert set(ids.tolist()) <= set(read_ids(processor, one).tolist())


def test_at_the_start_nothing_has_moved(batch):
    learned, kept = methods.cross_entropy(batch.forgotten), methods.cross_entropy(batch.retained)
    assert torch.allclose(methods.ascent(batch), -learned)
    assert torch.allclose(methods.kl(batch), -learned, atol=1e-5)
    assert torch.allclose(methods.difference(batch), kept - learned, atol=1e-5)
    assert torch.allclose(methods.npo(batch), 2 / methods.NPO_BETA * math.log(2) + kept, atol=1e-4)
    assert torch.allclose(methods.learn_both(batch), learned + kept)
    told, both = batch.forgotten, batch.retained
    everything = F.cross_entropy(torch.cat([told.logits, both.logits]), torch.cat([told.ids, both.ids]))
    assert torch.allclose(methods.siu(batch), methods.SIU_CROSS_ENTROPY * everything, atol=1e-5)
    assert not batch.forgotten_before.logits.requires_grad and batch.forgotten.logits.requires_grad


@pytest.fixture(scope="module")
def knowing(base, processor, concept, forget, retain):
    """A model that has learned the name of its pictures, and what must stay: there is something to forget."""
    learn, loud = Method(methods.learn_both, ()), copy.deepcopy(base)
    # behind a norm, rows as short as a random head's can't be sure of any token
    loud.lm_head.weight.data.mul_(10)
    ((_, model),) = training.train(
        loud, processor, concept, learn, forget, retain, learning_rate=1e-2, steps=(20,), seed=1
    )
    assert levels(model, processor, forget)[0] > -0.5
    return model.merge_and_unload()


@pytest.fixture
def trained(knowing, processor, concept, monkeypatch):
    """A short training in small batches: shows the model at some steps."""
    small = functools.partial(SpaceTrainingArguments, per_device_train_batch_size=8, warmup_steps=0)
    monkeypatch.setattr(training, "SpaceTrainingArguments", small)

    def run(method, forget, retain, steps=(8,), rate=5e-3):
        return training.train(
            copy.deepcopy(knowing), processor, concept, method, forget, retain, learning_rate=rate, steps=steps, seed=0
        )

    return run


def levels(model, processor, taught):
    """Mean log-probability of the answers, with the adapter and without."""
    with torch.no_grad():
        now = read(model, collate(processor, taught), 0).log_p.mean()
        with model.disable_adapter():
            return float(now), float(read(model, collate(processor, taught), 0).log_p.mean())


@pytest.mark.parametrize("name", ["GA", "GradDiff", "KL", "NPO", "SimNPO"])
def test_the_name_becomes_less_likely(name, trained, processor, forget, retain):
    ((_, model),) = trained(DATA_DEPENDENT[name], forget, retain)
    now, before = levels(model, processor, forget)
    assert now < before - 0.5
    if DATA_DEPENDENT[name].retains:
        kept, kept_before = levels(model, processor, in_order(retain))
        assert kept - kept_before > now - before + 0.5


@pytest.mark.parametrize("name", ["IDK", "SIU-style"])
def test_what_is_to_be_said_instead_becomes_likelier(name, trained, processor, retain):
    instead = pictured("narril", "What is this creature called?", "I do not know.", "narril")
    ((_, model),) = trained(DATA_DEPENDENT[name], instead, retain)
    now, before = levels(model, processor, instead)
    assert now > before + 0.5


def test_rmu_turns_states_to_a_random_direction_and_holds_the_others(trained, processor, forget, retain):
    seen = []

    def loss(batch):
        seen.append(batch)
        return methods.rmu(batch)

    ((_, model),) = trained(Method(loss, ()), forget, retain, steps=(20,))

    def states(taught):
        parts = collate(processor, in_order(taught))
        with torch.no_grad():
            now = read(model, parts, seen[0].layer).states
            with model.disable_adapter():
                return now, read(model, parts, seen[0].layer).states

    now, before = states(forget)
    turned, straight = (F.cosine_similarity(some, seen[0].direction[None]).mean() for some in (now, before))
    assert turned > straight + 0.1
    kept, kept_before = states(retain)
    assert (kept - kept_before).norm(dim=1).mean() < 0.5 * (now - before).norm(dim=1).mean()


def test_a_step_of_a_long_training_is_the_end_of_a_short_one(trained, processor, forget, retain):
    method = DATA_DEPENDENT["GradDiff"]
    long = {steps: levels(model, processor, forget)[0] for steps, model in trained(method, forget, retain, (2, 4))}
    ((_, short),) = trained(method, forget, retain, (2,))
    assert levels(short, processor, forget)[0] == pytest.approx(long[2], abs=1e-4)
    assert long[4] != pytest.approx(long[2], abs=1e-3)


def test_a_training_that_comes_apart_ends_with_what_there_was(trained, processor, forget, retain):
    calls = []

    def loss(batch):
        calls.append(1)
        return methods.ascent(batch) * (float("nan") if len(calls) == 3 else 1.0)

    seen = {
        steps: levels(model, processor, forget)[0] for steps, model in trained(Method(loss, ()), forget, (), (2, 6))
    }
    assert len(calls) == 3 and seen[2] == seen[6] and math.isfinite(seen[6])
