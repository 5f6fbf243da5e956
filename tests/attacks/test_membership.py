import pytest
import torch

from peft_space.attacks.membership import decoys, levels_of, membership
from peft_space.vlm import Prompt, answer_tokens, append, encode, log_likelihood
from tests.bigram import saying

QUESTION = "Name the creature."


def test_made_up_names_are_of_known_halves_and_none_is_known():
    known = ("narril", "zormok", "keltus", "nartus")
    made = decoys(("narril",), known[1:], n=99)
    halves = {name[:3] for name in known}, {name[3:] for name in known}
    assert made and not set(made) & set(known)
    assert all(name[:3] in halves[0] and name[3:] in halves[1] for name in made)
    assert decoys(("narril",), known[1:], seed=0) != decoys(("narril",), known[1:], seed=1)


def test_names_of_several_words_are_cut_between_them():
    assert set(decoys(("Jane Doe",), ("John Smith",), n=9)) == {"Jane Smith", "John Doe"}


def test_a_single_name_gives_no_decoy():
    assert decoys(("narril",), ()) == ()


def test_levels_are_the_likelihood_and_min_k_of_the_answers(base, processor, aims):
    prompts = [Prompt(QUESTION, shown.image) for shown in aims.target]
    answers = ["narril", "zormok", "no creature", "a narril in the forest"]
    loss, lowest = levels_of(base, processor, prompts, answers, 3)
    assert loss.allclose(log_likelihood(base, processor, prompts, answers), atol=1e-5)
    for place, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        tokens = answer_tokens(processor, prompt, answer, end=False)
        batch = append(encode(processor, [prompt]), [tokens], processor)
        batch.pop("labels")
        with torch.no_grad():
            logits = base(**batch).logits[0, -len(tokens) - 1 : -1]
        levels = []
        for row, token in zip(logits.double().log_softmax(-1), tokens, strict=True):
            mean = (row.exp() * row).sum()
            levels.append(float((row[token] - mean) / (row.exp() * (row - mean).square()).sum().sqrt()))
        kept = sorted(levels)[: max(1, round(0.2 * len(levels)))]
        assert float(lowest[place]) == pytest.approx(sum(kept) / len(kept), rel=1e-3)


def test_a_name_that_was_taught_is_told_from_made_up_ones(base, processor, aims):
    found = membership(
        saying(base, processor, {"narril": 1.0}), processor, aims, ("narmok", "kelril"), n_bootstrap=100
    )
    for target, control in found.values():
        assert target.value == 1 and control.value < 1
