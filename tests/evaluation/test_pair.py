import pytest
import torch

from peft_space.evaluation.pair import Pair
from peft_space.vlm import Prompt, generate, log_likelihood
from tests.adapters import shake, space
from tests.tiny import tiny_llama

PROMPTS = [Prompt("Name this creature."), Prompt("What is the opposite of hot?")]


def test_of_a_peft_model_the_base_is_itself_without_adapters(base, model, processor, public):
    prompts = [Prompt("Name this creature.", image) for image in public.images[:2]]
    pair = Pair(shake(space(model)), processor)
    before, after = pair.likelihood(prompts, ["narril", "a red bird"])
    assert before.tolist() == pytest.approx(
        log_likelihood(base, processor, prompts, ["narril", "a red bird"]).tolist()
    )
    assert (before - after).abs().max() > 1e-3
    told = pair.answers(prompts)
    assert told[0] == generate(base, processor, prompts, max_new_tokens=24)


def test_with_a_base_of_its_own(base, model, processor):
    with torch.no_grad():
        model.get_output_embeddings().weight.neg_()
    before, after = Pair(model, processor, base).answers(PROMPTS)
    assert before == generate(base, processor, PROMPTS) and after == generate(model, processor, PROMPTS) != before


def test_states_that_begin_an_answer_decide_its_first_token(base, model, processor, public):
    prompts = [Prompt("Name this creature.", public.images[0]), PROMPTS[1], Prompt("Name it.", public.images[1])]
    states, _ = Pair(model, processor, base).first_states(prompts)
    first = base.get_output_embeddings()(states).argmax(1)
    told = generate(base, processor, prompts, max_new_tokens=1)
    assert [processor.tokenizer.decode(token).strip() for token in first] == told


@pytest.mark.parametrize("kind", ["no base", "two bases"])
def test_a_pair_is_two(model, base, processor, kind):
    given = (model, processor) if kind == "no base" else (space(model, subspace=False), processor, base)
    with pytest.raises(ValueError, match="`base` must be given for a model without adapters, and only then"):
        Pair(*given)


def test_a_model_that_sees_nothing(base, processor):
    with pytest.raises(TypeError, match="vision-language model"):
        Pair(tiny_llama(), processor, base)
