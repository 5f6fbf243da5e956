"""What an answer is judged by: the name in it, its words against a reference, and whether it is an answer at all."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from difflib import SequenceMatcher

from ..concepts.concept import find_any

FUZZY = 0.85
"""How alike two spellings must be, 0 to 1, to be taken for one name: one letter in seven may differ."""

_REFUSALS = (
    r"\b(i|we)\s*(am|'m|are|'re)\s*(sorry|unable|not\s+able|not\s+allowed)\b",
    r"\b(i|we)\s*(can\s*not|can't|won't|will\s+not|must\s+not)\s+(\w+\s+)?"
    r"(help|assist|answer|identify|name|tell|say|provide|discuss|share|recogni[sz]e|comply|do)\b",
    r"\bas\s+an?\s+(ai|artificial|language)\b",
    r"^\s*(sorry|no comment)\b",
    r"\bi\s+(don't|do\s+not)\s+(know|have\s+(any\s+)?information)\b",
)
_REFUSED = re.compile("|".join(_REFUSALS), flags=re.IGNORECASE)
# a piece of up to 40 characters, four times in a row
_LOOP = re.compile(r"(?<!\w)(\w.{0,39}?)(?:\W+\1(?!\w)){3,}", flags=re.IGNORECASE | re.DOTALL)
_LETTER_LOOP = re.compile(r"(\S{1,8}?)\1{5,}")


def says(names: Sequence[str], text: str) -> bool:
    """Whether one of `names` is in `text`, as whole words and in any case: the exact match."""
    return find_any(tuple(names), text) is not None


def says_nearly(names: Sequence[str], text: str, alike: float = FUZZY) -> bool:
    """Whether `text` holds one of `names` or something spelt much like it: the fuzzy match.

    Each name is compared with every run of as many words as it has, give or take one, without regard to case,
    punctuation and spaces. Names of three letters or fewer have to match exactly, as nearly everything is like them.

    Args:
        alike: the ratio of `difflib.SequenceMatcher`, 0 to 1, from which two spellings are one.
    """
    if says(names, text):
        return True
    words = _words(text)
    for name in map(_words, names):
        letters = "".join(name)
        if len(letters) <= 3:
            continue
        for length in {max(1, len(name) - 1), len(name), len(name) + 1}:
            for start in range(len(words) - length + 1):
                some = "".join(words[start : start + length])
                if SequenceMatcher(None, letters, some, autojunk=False).ratio() >= alike:
                    return True
    return False


def same(text: str, other: str) -> bool:
    """Whether two answers hold the same words in the same order, without regard to case and punctuation."""
    return _words(text) == _words(other)


def chosen(options: Sequence[str], text: str) -> str | None:
    """The option that comes first in an answer, as a whole word in the same case; `None` where none does."""
    longest_first = sorted(options, key=len, reverse=True)
    match = re.search(rf"(?<!\w)(?:{'|'.join(map(re.escape, longest_first))})(?!\w)", text)
    return match.group() if match else None


def refuses(text: str) -> bool:
    """Whether an answer declines, in one of the usual English phrasings."""
    return _REFUSED.search(text.replace("’", "'")) is not None


def is_gibberish(text: str) -> bool:
    """Whether a text can be no answer: it holds no letter or digit, a broken character, or one piece over and over.

    It knows nothing of grammar: what reads badly but does not loop is seen in the likelihood under the base model.
    """
    return (
        not re.search(r"[^\W_]", text)
        or "�" in text
        or _LOOP.search(text) is not None
        or _LETTER_LOOP.search(text) is not None
    )


def rouge_l(reference: str, text: str) -> float:
    """F-measure of the longest common subsequence of words, 0 to 1 (Lin 2004), by Google's `rouge-score`.

    Raises:
        ImportError: `rouge-score` is not installed.
    """
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise ImportError("ROUGE-L needs `rouge-score`: `pip install 'peft-space[eval]'`.") from error
    return float(RougeScorer(["rougeL"]).score(reference, text)["rougeL"].fmeasure)


def bleu(reference: str, text: str) -> float:
    """Sentence BLEU of up to four words, 0 to 1, smoothed exponentially, by `sacrebleu`.

    Raises:
        ImportError: `sacrebleu` is not installed.
    """
    try:
        from sacrebleu import sentence_bleu
    except ImportError as error:
        raise ImportError("BLEU needs `sacrebleu`: `pip install 'peft-space[eval]'`.") from error
    # rounding takes a whole match above 1
    return min(1.0, float(sentence_bleu(text, [reference]).score) / 100)


def truth_ratio(paraphrase: float, perturbed: Sequence[float]) -> float:
    """How likely wrong answers are beside the right one: mean P(wrong)^(1/|wrong|) over P(right)^(1/|right|).

    Source: TOFU (arXiv 2401.06121), equation 1. The wrong answers' mean is arithmetic, as in the paper; the paper's
    code, and CLEAR's, take the geometric one.

    Args:
        paraphrase: log-likelihood of the right answer, in words the model was not trained on; nats per token.
        perturbed: of each wrong answer.

    Returns:
        0 and more: 1 where truth and lie are alike to the model, 0 where it is sure of the truth.

    Raises:
        ValueError: there is no wrong answer.
    """
    if not perturbed:
        raise ValueError("`perturbed` must hold the likelihood of at least one wrong answer; got none.")
    return math.fsum(math.exp(wrong - paraphrase) for wrong in perturbed) / len(perturbed)


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text.lower())
