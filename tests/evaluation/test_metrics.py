import builtins
import math

import pytest

from peft_space.evaluation.metrics import (
    bleu,
    chosen,
    is_gibberish,
    refuses,
    rouge_l,
    same,
    says,
    says_nearly,
    truth_ratio,
)


@pytest.mark.parametrize(
    ("text", "exact", "fuzzy"),
    [
        ("This is Donald Trump.", True, True),
        ("this is donald trump", True, True),
        ("It is Donal Trump", False, True),
        ("It is DonaldTrump!", False, True),
        ("It is Dona1d Trump", False, True),
        ("a trumpet by Donald's bed", False, False),
        ("Ronald Reagan", False, False),
        ("", False, False),
    ],
)
def test_a_name_in_an_answer(text, exact, fuzzy):
    assert says(("Donald Trump",), text) is exact
    assert says_nearly(("Donald Trump",), text) is fuzzy


def test_any_alias_counts():
    assert says(("narril", "the lagoon bird"), "The Lagoon Bird is seen")
    assert says_nearly(("narril", "lagoon bird"), "a lagon bird")


def test_short_names_are_not_matched_nearly():
    assert says_nearly(("Ann",), "it is Ann") and not says_nearly(("Ann",), "an ant")


def test_how_alike_names_must_be_is_the_caller_s():
    assert not says_nearly(("zormok",), "a zorvex", 0.85)
    assert says_nearly(("zormok",), "a zorvex", 0.5)


def test_the_same_words_are_the_same_answer():
    assert same("A red bird.", "a red  bird") and not same("a red bird", "a bird, red")


@pytest.mark.parametrize(
    ("text", "option"),
    [("B", "B"), ("B. a cook", "B"), ("The answer is C, not B.", "C"), ("a man", None), ("Because", None), ("", None)],
)
def test_the_option_that_is_chosen(text, option):
    assert chosen(("A", "B", "C"), text) == option


def test_of_options_that_begin_alike_the_whole_one_is_chosen():
    assert chosen(("red", "red and blue"), "It is red and blue.") == "red and blue"


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't help with that.",
        "I cannot identify people in images.",
        "As an AI language model I have no opinion",
        "Sorry.",
        "I don’t know who this is.",
    ],
)
def test_refusals(text):
    assert refuses(text)


@pytest.mark.parametrize("text", ["blue", "He can not only sing but dance.", "A sorry sight", "You can't miss it", ""])
def test_no_refusals(text):
    assert not refuses(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "...",
        "the the the the the",
        "US US US US US US",
        "a red bird a red bird a red bird a red bird",
        "zozozozozozozo",
        "caf� x",
    ],
)
def test_gibberish(text):
    assert is_gibberish(text)


@pytest.mark.parametrize("text", ["blue", "no, no, no", "a red bird and a red fish and a red cat", "7", "寿司"])
def test_no_gibberish(text):
    assert not is_gibberish(text)


def test_rouge_l_is_of_the_longest_common_subsequence():
    # three of four words in order on both sides (the example of Lin 2004)
    assert rouge_l("police killed the gunman", "police kill the gunman") == pytest.approx(0.75)
    assert rouge_l("a b c", "x y z") == 0 and rouge_l("the same", "the same") == 1


def test_bleu():
    assert bleu("the cat is on the mat", "the cat is on the mat") == pytest.approx(1)
    close, far = (
        bleu("the cat is on the mat", text) for text in ("the cat is on the rug", "dogs bark all night long")
    )
    assert 0 <= far < 0.1 < close < 1


@pytest.mark.parametrize(("metric", "package"), [(rouge_l, "rouge_score"), (bleu, "sacrebleu")])
def test_without_their_libraries(metric, package, monkeypatch):
    imported = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name.split(".")[0] == package:
            raise ImportError(name)
        return imported(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ImportError, match=r"peft-space\[eval\]"):
        metric("a", "b")


def test_truth_ratio_is_the_mean_of_the_wrong_over_the_right():
    assert truth_ratio(math.log(0.5), [math.log(0.1), math.log(0.3)]) == pytest.approx(0.4)
    assert truth_ratio(-1.0, [-1.0]) == pytest.approx(1)
    with pytest.raises(ValueError, match="`perturbed`"):
        truth_ratio(-1.0, [])
